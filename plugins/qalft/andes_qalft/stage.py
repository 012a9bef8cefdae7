"""Stage `qalft`: LoRA on the dequantised weights of a packed base, with its ranges of activations as constants.

After MediaTek's fine-tuning script of that name, whose base AndesVL's report describes: base weights are the numbers
that the codes stand for, inputs of layers are rounded with the base's own scales, which are neither measured nor
learned, and only A and B train. A sees the rounded input, as on the device, where A and B are inputs of the graph;
they themselves and what A gives stay in floats. Outputs have no ranges of their own in an artefact: the next layer's
input range rounds the sum.
Left out: requantisation of the sum at a wider scale (`buffer_scale`), rotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_adapters.contract import FIELD, Contract, differing, read_contract, text_parts, weights_hash
from andes_adapters.reading import contract_mark
from andes_qat.fake import rounded_input
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from andes_training.lora import Lora
from andes_training.loss import next_token_loss
from andes_training.recipe import LoraRecipe
from attrs import define, field
from torch import Tensor, nn

from andes_sdk.errors import ConfigError, TrainingError
from andes_sdk.numbers import numbers_of
from andes_sdk.storage.checkpoint import stored_tensors
from andes_sdk.types import Range

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun
    from torch.utils.hooks import RemovableHandle

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position


@define(kw_only=True, eq=False)
class QALFTStage:
    """Trains an adapter and nothing else; see the plugin's options for the attributes."""

    file: str
    rank: int
    alpha: int
    dropout: float
    rate: float
    targets: Sequence[str]
    recovery: str
    adapter: str
    ranges: bool
    name: str = "qalft"
    contract: Contract | None = field(default=None, init=False)
    lora: Lora | None = field(default=None, init=False)
    numbers: str = field(default="", init=False)
    hooks: list[RemovableHandle] = field(factory=list, init=False)

    @property
    def folder(self) -> str:
        """Where the adapter is saved."""
        return f"adapters/{self.adapter}"

    def put_in(self, model: Model) -> None:
        """Add the adapter, and round inputs as the contract says.

        Raises:
            ConfigError: the model is not the contract's base: says which part differs; or a recovery adapter of another
                contract. CheckpointError: files that cannot be read. TrainingError: peft is not installed.
        """
        self.contract = read_contract(self.file) if self.file else None
        hollow = any(p.is_meta for p in model.parameters())
        if self.contract is not None and not hollow:
            refuse_other_base(model, self.contract)
        self.numbers = model.numbers or ("" if hollow else numbers_of(cast("nn.Module", model)))
        ranges = self.contract.ranges if self.contract is not None and self.ranges else {}
        refuse_shifted(ranges)
        rank = self.rank if self.contract is None else self.contract.rank
        recipe = LoraRecipe(
            rank=rank, alpha=self.alpha, dropout=self.dropout, rate=self.rate, targets=list(self.targets)
        )
        self.lora = Lora(recipe, self.folder)
        self.lora.put_in(model)
        if self.recovery:
            self._recover(model)
        self.hooks = round_inputs(model, ranges)

    def _recover(self, model: Model) -> None:
        mark = contract_mark(self.recovery)
        found = [] if self.contract is None or mark is None else differing(mark, self.contract.mark)
        if found or (self.contract is not None and mark is None):
            why = f"other {', other '.join(found)}" if found else "it carries none"
            fix = "train the recovery adapter for this base"
            raise ConfigError("is of another contract", who=f"recovery {self.recovery}", why=why, fix=fix)
        assert self.lora is not None
        self.lora.load(model, Path(self.recovery))

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate: A and B alone."""
        assert self.lora is not None
        return {prefix: rate for prefix, rate in self.lora.rates(model).items() if rate > 0}

    def save(self, model: Model, folder: Path) -> None:
        """Write the adapter as peft does, with the contract that it was trained for.

        Raises:
            TrainingError: files in the folder would be lost.
        """
        assert self.lora is not None
        model.numbers = self.numbers  # the loop has cleared it
        self.lora.save(model, folder, {} if self.contract is None else {FIELD: self.contract.mark})

    def take_out(self, model: Model) -> None:
        """Give the model its own layers back; its weights never changed."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        assert self.lora is not None
        self.lora.take_out(model)
        model.numbers = self.numbers

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The usual lines."""
        return conversations_of(entry)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs.

        Raises:
            TrainingError: rates of the recipe that would change the base.
        """
        recipe = run.recipe
        if moving := sorted(p for p, rate in recipe.rates.items() if rate > 0 and ".lora_" not in p):
            fix = f"leave rates.{moving[0]} out"
            raise TrainingError("cannot train beside the adapter", who=moving[0], why="the base is frozen", fix=fix)
        return packed(run)

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> cross-entropy on the answers, and its figures."""
        return next_token_loss(model, batch)


def refuse_shifted(ranges: Mapping[str, Range]) -> None:
    """Refuse ranges that are not symmetric.

    Raises:
        TrainingError: naming the first module.
    """
    if shifted := [name for name, one in ranges.items() if one.zero]:
        fix = "pack a base whose ranges are symmetric, or set ranges=false"
        raise TrainingError("a range has a zero point", who=shifted[0], why="inputs are rounded about 0", fix=fix)


def round_inputs(model: Model, ranges: Mapping[str, Range]) -> list[RemovableHandle]:
    """Round inputs of modules by constant scales from here on, until the handles are removed.

    Raises:
        TrainingError: a range with a zero point. ConfigError: the model has no such module.
    """
    refuse_shifted(ranges)
    modules = dict(model.named_modules())
    if strange := sorted(set(ranges) - set(modules)):
        fix = "give the contract of this base"
        raise ConfigError("there is no such module", who=strange[0], why="the contract has a range for it", fix=fix)
    return [modules[name].register_forward_pre_hook(_rounding(one)) for name, one in ranges.items()]


def _rounding(one: Range) -> Any:
    """A hook that rounds a module's input by a constant scale."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (rounded_input(args[0], torch.tensor(one.scale, device=args[0].device), one.bits), *args[1:])

    return hook


def refuse_other_base(model: Model, contract: Contract) -> None:
    """Refuse a model that is not what a contract says, to the bit.

    Raises:
        ConfigError: naming the part that differs, and of weights the first tensor.
    """
    numbers = model.numbers or numbers_of(cast("nn.Module", model))
    parts = text_parts(model.tokenizer)
    found = differing(contract.mark, parts)
    stored = stored_tensors(cast("VisionLanguageModel", model))
    for name, wanted in contract.tensors.items():
        tensor = stored.get(name)
        if tensor is None:
            found.append(f"weights: there is no {name}")
        elif weights_hash((tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()) != wanted:
            found.append(f"weights of {name}")
        else:
            continue
        break
    if not found and numbers != contract.numbers:
        found = ["codes, scales or ranges behind the same weights" if numbers else "codes: it was not packed"]
    if found:
        fix = 'open the packed file that the contract was written for, with backend="torch"'
        raise ConfigError(
            "is not the base of this contract", who="the model", why=f"other {', other '.join(found)}", fix=fix
        )
