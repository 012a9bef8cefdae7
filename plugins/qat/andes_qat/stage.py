"""Stage `qat`: weights, and inputs if wanted, are rounded in each forward pass as they will be stored.

Over the first steps ranges of inputs are measured; they are calibrated then, or learn from there on. On sparse grids
survivors fall from m to n over the first share of the steps, and are chosen anew every few steps until the last share,
as in the stage `sparse`; where the weights have the grid's zeros already, they begin at n. If wanted, layers learn one
by one first, on the first packs (`andes_qat.blockwise`). At the end the weights become codes times scales, and the
codes are saved beside the model. With a teacher the loss is that of the stage `distillation`; else it is the cross-
entropy on the answers.
Left out: division of the model among processes (FSDP), convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from andes_sparsity.schedule import is_due, refuse_options, settled, survivors
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from andes_training.loss import next_token_loss
from attrs import define, evolve, field
from rich.console import Console
from torch import Tensor
from torch.distributed.tensor import DTensor

from andes_sdk.errors import TrainingError

from . import kv
from .blockwise import train_layers
from .grids import Choice, places
from .layers import Rounding, put_in, rounding_layers, take_out
from .record import write_record
from .rotation import rotate

if TYPE_CHECKING:
    from andes_distillation.stage import DistillationStage
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position

PACKS = 32
"""Packs that layers learn from one by one: all of what enters a layer is in memory."""


@define(kw_only=True, eq=False)
class QATStage:
    """Trains the parts of a model on grids.

    Attributes:
        module_rates: module prefix -> learning rate; 0 freezes. scale_rate: of scales, times that.
        choice: grids. rotation: of the weights first, or "". rule: of scales. bits: of inputs; 0: floats.
        inputs: 'learned' or 'calibrated' ranges.
        kv: bits of keys and values; 0: floats.
        calibrate: steps over which ranges are measured. every, ramp, hold: as in the stage `sparse`.
        blockwise: steps of each layer before the first step; block_rate: their learning rate.
        inner: the loss with a teacher, or None.
    """

    module_rates: Mapping[str, float]
    scale_rate: float
    choice: Choice
    rule: str
    bits: int
    kv: int
    inputs: str
    calibrate: int
    every: int
    ramp: float
    hold: float
    rotation: str = ""
    blockwise: int = 0
    block_rate: float = 1e-3
    inner: DistillationStage | None = None
    name: str = "qat"
    folder: str = "qat"
    steps: int = field(default=0, init=False)
    learnt: bool = field(default=False, init=False)

    def put_in(self, model: Model) -> None:
        """Make the layers round.

        Raises:
            ConfigError: a layer that cannot.
        """
        owners: dict[int, Rounding] = {}
        modules, self.learnt = dict(model.named_modules()), False
        found = places(model, self.choice)
        if self.rotation:
            rotate(cast("VisionLanguageModel", model), self.rotation)
        for name, target in found.items():
            module = modules[name]
            one = put_in(module, target, self.rule, self.bits, self.inputs, owners.get(id(module.weight)))
            owners.setdefault(id(module.weight), one)
        if self.kv:  # last: what is refused above leaves the model as it was
            kv.put_in(model, self.kv)

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate; scales have their own.

        Raises:
            TrainingError: a teacher that is missing or does not fit.
        """
        if self.inner is not None:
            self.inner.opened(model)
        rates = {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}
        for name, _ in model.named_parameters():
            if name.rpartition(".")[2] in ("weight_scale", "input_scale"):
                part = max((p for p in rates if name.startswith(f"{p}.")), key=len, default="")
                rates |= {name: rates[part] * self.scale_rate} if part else {}
        return rates

    def save(self, model: Model, folder: Path) -> None:
        """The codes, scales and ranges that were trained.

        Raises:
            ConfigError: an input range that cannot be.
        """
        _settle(model)
        write_record(folder, rounding_layers(model), self.kv)

    def take_out(self, model: Model) -> None:
        """Weights become codes times scales, and the layers hold their codes; without any step all is as before."""
        if self.learnt:
            _settle(model)
        kv.take_out(model)
        take_out(model, learnt=self.learnt)

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The usual lines."""
        return conversations_of(entry)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs.

        Raises:
            TrainingError: options of the recipe that do not go with rounding.
        """
        recipe = run.recipe
        adapters = "adapters learn in place of the weights that are rounded"
        refuse_options(recipe, "quantisation-aware training", adapters=adapters, lost="codes")
        if self.bits and run.world > 1:
            why, fix = "each process would measure ranges of its own", "use one process, or leave inputs in floats"
            raise TrainingError("ranges of inputs cannot be measured together", who="qat.inputs", why=why, fix=fix)
        if self.bits and self.calibrate >= recipe.steps > 1:
            why = f"{self.calibrate} steps of calibration, {recipe.steps} in all"
            raise TrainingError("ranges would never be used", who="qat.calibrate", why=why, fix="lower it")
        if self.blockwise and recipe.ema:
            why = "its average would begin with the weights from before the layers learn one by one"
            fix = "leave ema out, or set blockwise = 0"
            raise TrainingError("cannot be combined with blockwise", who="ema", why=why, fix=fix)
        self.steps, self.learnt = recipe.steps, run.position.step > 0
        if self.blockwise and not self.learnt:
            self._layer_by_layer(run)
        return packed(run)

    def _layer_by_layer(self, run: StageRun) -> None:
        """Train each layer by itself on the first packs, as many as fit a step each, 32 at most."""
        if run.world > 1:
            why, fix = "each process would train layers of its own", "use one process, or blockwise = 0"
            raise TrainingError("layers cannot be trained one by one together", who="qat.blockwise", why=why, fix=fix)
        model = run.pipeline.model
        with closing(cast("Any", packed(evolve(run, tell=lambda *_: None)))) as feed:  # the run's own feed tells
            packs = [batch.to(run.device) for _, batch in islice(feed, min(self.blockwise, PACKS))]
        with run.autocast():
            errors = train_layers(
                model, packs, steps=self.blockwise, rate=self.block_rate, scale_rate=self.scale_rate,
                console=Console(stderr=True),
            )  # fmt: skip
        inner = {f"language_model.{place}" for place in model.llm.linears()}
        for name, layer in rounding_layers(model).items():
            if name in inner and layer.weight_sparse is not None:
                layer.weight_sparse.fill_(value=True)  # survivors do not fall a second time
        run.tell("blockwise", {"steps": self.blockwise, "packs": len(packs), "error": errors[-1]})

    @property
    def settled(self) -> int:
        """The step from which on survivors stay; one step at least is left after it."""
        return settled(self.steps, self.hold)

    def before_step(self, model: Model, step: int) -> None:
        """Choose survivors where that is due, and take the ranges that were measured.

        Raises:
            TrainingError: the model is divided among processes. ConfigError: an input range that cannot be.
        """
        self.learnt = True
        due = is_due(step, self.every, self.settled)
        for name, layer in rounding_layers(model).items():
            if isinstance(layer.weight, DTensor):
                why, fix = "a process sees a share of each matrix only", 'set sharding = "none"'
                raise TrainingError("a divided model cannot be rounded", who="sharding", why=why, fix=fix)
            layer.observing = bool(layer.bits) and step < self.calibrate
            if layer.bits and step == self.calibrate:
                layer.settle_input(name)
            if due and layer.weight_mask is not None:
                n, m = layer.target.n, layer.target.m
                fallen = step == self.settled or bool(layer.weight_sparse)
                layer.choose(n if fallen else survivors(step, self.ramp * self.steps, n, m))

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (loss in nats, figures): those of the loss, and `sparsity` where a grid is sparse."""
        loss, figures = (next_token_loss if self.inner is None else self.inner.loss)(model, batch)
        masks = [m for layer in rounding_layers(model).values() if (m := layer.weight_mask) is not None]
        if not masks:
            return loss, figures
        kept, total = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
        return loss, {**figures, "sparsity": 1.0 - kept / total}

    def state(self) -> Mapping[str, Tensor]:
        """The teacher's mark; scales are parameters of the model, masks and ranges buffers."""
        return {} if self.inner is None else self.inner.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Expect the teacher that the run began with."""
        if self.inner is not None:
            self.inner.load_state(tensors)


def _settle(model: Model) -> None:
    """Take ranges that are still measured: after a stage of a single step."""
    for name, layer in rounding_layers(model).items():
        if layer.observing:
            layer.observing = False
            layer.settle_input(name)
