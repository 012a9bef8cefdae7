"""What matrices are given on a few texts and pictures: the statistics of one-shot pruning."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_training.data.samples import stage_samples
from andes_training.packing import collate, pack
from andes_training.reading import RowMaker
from andes_training.recipe import DataRecipe
from attrs import define, field
from torch import Tensor, nn

from andes_sdk.assembling.building import build_processor
from andes_sdk.errors import ConfigError
from andes_sdk.plan import Plan

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model

PATCHES = 1 << 14
"""Most patches of one pack."""


class _Enough(Exception):
    """The layers that are looked at have seen everything."""


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer's module is called with: the (1, T, D) rows first, and whatever else the model gives to it."""


@define(eq=False)
class Calibration:
    """Packs of lines, and what enters one layer after the other for each.

    Layers are asked for first to last, and those before the one that is asked for do not change any more: each layer is
    computed once.
    """

    model: VisionLanguageModel
    packs: Sequence[Batch]
    _calls: list[Call] = field(factory=list, init=False)
    _at: int = field(default=0, init=False)

    @property
    def tokens(self) -> int:
        """Rows of all packs."""
        return sum(len(p.ids) for p in self.packs)

    @classmethod
    def of(cls, model: VisionLanguageModel, data: str, lines: int, max_tokens: int, who: str) -> Calibration:
        """Read the first lines of a file.

        Raises:
            ConfigError: no file is named. TrainingError: it cannot be read, or a line cannot be used.
        """
        if not data:
            why, fix = "it weighs inputs of the matrices", "give the option `data` a file of conversations"
            raise ConfigError("needs calibration data", who=who, why=why, fix=fix)
        found = stage_samples([DataRecipe(path=Path(data))], Path())
        maker = RowMaker(build_processor(model, Plan(plugins=())))
        rows = [maker.row(found[i], random.Random(i)) for i in range(min(lines, len(found)))]
        packs = pack(rows, max_tokens=max_tokens, max_patches=PATCHES)
        return cls(model, [collate(group).to(model.device) for group in packs])

    @torch.no_grad()
    def calls(self, layer: int) -> Sequence[Call]:
        """What a layer's module is called with, of each pack.

        Raises:
            ValueError: a layer before the one that was asked for last.
        """
        if layer < self._at:
            raise ValueError(f"layer {layer} after layer {self._at}")
        if not self._calls:
            self._calls = [self._first(batch) for batch in self.packs]
        for number in range(self._at, layer):
            module = layer_module(self.model, number)
            self.take(number + 1, [output_of(module, call) for call in self._calls])
        return self._calls

    def take(self, layer: int, rows: Sequence[Tensor]) -> None:
        """Have a layer be given these (1, T, D) rows, of each pack: what leaves the one before it."""
        self._calls = [((one, *call[0][1:]), call[1]) for one, call in zip(rows, self._calls, strict=True)]
        self._at = layer

    def _first(self, batch: Batch) -> Call:
        found: list[Call] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            rows = args[0] if args else kwargs.pop("hidden_states")
            found.append(((rows.clone(), *args[1:]), kwargs))
            raise _Enough

        handle = layer_module(self.model, 0).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model.hidden_states(
                self.model.embed(batch.ids, self.model.encode(batch.media)), batch.positions, batch.attend
            )
        except _Enough:
            return found[0]
        finally:
            handle.remove()
        raise ConfigError("the first layer was not called", who="calibration", fix="use a compressor without data")

    @torch.no_grad()
    def after(self, last: int) -> Tensor:
        """(T, D) rows that leave a layer, of the first pack."""
        return output_of(layer_module(self.model, last), self.calls(last)[0])[0]

    @torch.no_grad()
    def show(self, last: int, modules: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> None:
        """Run a layer on all packs; `see` gets each module's name and the (T, columns) that enter."""

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: see(name, args[0].reshape(-1, args[0].shape[-1]))

        calls, whole = self.calls(last), layer_module(self.model, last)
        handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
        try:
            for call in calls:
                output_of(whole, call)
        finally:
            for handle in handles:
                handle.remove()


def layer_module(model: Model, layer: int) -> nn.Module:
    """The module that holds all matrices of a layer of the language model.

    Raises:
        ConfigError: there is none; a model that keeps them elsewhere is not for compressors that look at inputs.
    """
    names = [name.split(".") for name, (number, _) in model.llm.linears().items() if number == layer]
    others = [name.split(".") for name, (number, _) in model.llm.linears().items() if number != layer]
    shared = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    if not shared or any(name[: len(shared)] == shared for name in others):
        fix = "use a compressor without data"
        raise ConfigError(f"layer {layer} is no module of its own", who="calibration", fix=fix)
    return model.language_model.get_submodule(".".join(shared))


def output_of(module: nn.Module, call: Call) -> Tensor:
    """(1, T, D) rows that leave a layer."""
    made = module(*call[0], **call[1])
    return cast("Tensor", made[0] if isinstance(made, tuple) else made)
