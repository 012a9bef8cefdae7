"""Stage `distillation`: the teacher's distribution, its hidden states, and the data's answers.

loss = kl · T² · KL(teacher ‖ student) + ce · cross-entropy + hidden · squared error, each a mean over supervised
tokens. Hidden states follow TinyBERT (arXiv 1909.10351, eq. 8): the student's rows, through a linear map where the
widths differ, against the teacher's. The map learns with the student and is not part of the saved model.
Left out: reverse and mixed divergences, answers sampled from the student (GKD), attention maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from attrs import define, field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from andes_sdk.errors import TrainingError

from .losses import compared, taught
from .teacher import frozen_model, mark_of, open_teacher

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Model, Position, TextSpec

MAPS = "distillation_maps"
"""The maps' name in the student during the stage."""


@define(kw_only=True, eq=False)
class DistillationStage:
    """Trains the parts of the student, each at its own rate; a rate of 0 freezes.

    Attributes:
        source: where the teacher is.
        module_rates: module prefix -> learning rate.
        kl, ce: weights. k: tokens of the teacher that count one by one. temperature: of both models.
        known: (32,) the mark of the teacher that the run began with; zeros before that.
    """

    source: str
    module_rates: Mapping[str, float]
    kl: float
    ce: float
    k: int
    temperature: float
    name: str = "distillation"
    known: Tensor = field(factory=lambda: torch.zeros(32, dtype=torch.uint8))
    _opened: tuple[Pipeline, TextSpec] | None = field(default=None, init=False)
    _teacher: VisionLanguageModel | None = field(default=None, init=False)

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate.

        Raises:
            TrainingError: there is no teacher, or none that fits.
        """
        self.opened(model)
        return {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}

    def opened(self, student: Model) -> tuple[Pipeline, TextSpec]:
        """The teacher's pipeline and its sizes; it is opened, and compared with the student, once."""
        if self._opened is None:
            self._opened = open_teacher(self.source, student)
        return self._opened

    def teacher(self, student: Model) -> VisionLanguageModel:
        """The teacher, its weights read.

        Raises:
            TrainingError: the run began with another one.
        """
        if self._teacher is None:
            self._teacher = frozen_model(self.opened(student)[0], student.device)
            mark = mark_of(self._teacher)
            if bool(self.known.any()) and not torch.equal(mark, self.known):
                fix = "put the teacher back, or start anew in another folder"
                raise TrainingError("the teacher is not the one that the run began with", who=self.source, fix=fix)
            self.known = mark
        return self._teacher

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (weighted losses in nats, figures).

        Figures: `kl` (nats, without T²), `ce`, `agreement`: the share of rows whose best token is the same for both.
        """
        rows, told, seen, shown = self._both(model, batch)
        top = taught(self.teacher(model), told, self.k, self.temperature)
        kl, ce, same = compared(model, rows, batch.labels[batch.labels != -100], top, self.temperature)
        figures = {
            "kl": float(kl.detach().mean()),
            "ce": float(ce.detach().mean()),
            "agreement": float(same.float().mean()),
        }
        loss = self.kl * self.temperature**2 * kl.mean() + self.ce * ce.mean()
        extra, more = self._hidden(model, seen, shown)
        return (loss if extra is None else loss + extra), {**figures, **more}

    def _both(
        self, model: VisionLanguageModel, batch: Batch
    ) -> tuple[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]]:
        """Supervised rows of student and teacher, and of the layers that are compared, pair by pair."""
        teacher, pairs = self.teacher(model), self._pairs(model)
        with torch.no_grad():
            told, shown = supervised_rows(teacher, batch, [pair[1] for pair in pairs])
        rows, seen = supervised_rows(model, batch, [pair[0] for pair in pairs])
        return rows, told, seen, shown

    def _pairs(self, model: Model) -> Sequence[tuple[int, int]]:
        return ()

    def _hidden(
        self, model: VisionLanguageModel, seen: Sequence[Tensor], shown: Sequence[Tensor]
    ) -> tuple[Tensor | None, Mapping[str, float]]:
        return None, {}

    def state(self) -> Mapping[str, Tensor]:
        """The teacher's mark, so that no run goes on with another one."""
        return {"teacher": self.known}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Expect the teacher that the run began with."""
        self.known, self._teacher = tensors["teacher"], None


@define(kw_only=True, eq=False)
class HiddenStage(DistillationStage):
    """The same with hidden states.

    Attributes:
        hidden: weight. layers: pairs of the student's and the teacher's. map_rate: learning rate of the maps.
    """

    hidden: float
    layers: Sequence[tuple[int, int]]
    map_rate: float
    folder: str = "distillation"

    def put_in(self, model: Model) -> None:
        """Add a map per pair, where the widths differ.

        Raises:
            TrainingError: a layer that does not exist, a rate of 0, or no teacher that fits.
        """
        self._pairs(model)
        wide = self.opened(model)[1].width
        if wide == model.text.width:
            return
        if not self.map_rate:
            why = f"the teacher's hidden states are {wide} wide, the student's {model.text.width}"
            fix = "give it a rate above 0"
            raise TrainingError("maps that do not learn", who="distillation.map_rate", why=why, fix=fix)
        maps = {str(n): nn.Linear(model.text.width, wide, bias=False) for n in range(len(self.layers))}
        model.add_module(MAPS, nn.ModuleDict(maps).to(model.device, model.dtype))

    def rates(self, model: Model) -> Mapping[str, float]:
        """Those of the student and of the maps."""
        maps = {MAPS: self.map_rate} if hasattr(model, MAPS) else {}
        return {**DistillationStage.rates(self, model), **maps}

    def save(self, model: Model, folder: Path) -> None:
        """Nothing: what was learnt lies in the student."""

    def take_out(self, model: Model) -> None:
        """Remove the maps."""
        if hasattr(model, MAPS):
            delattr(model, MAPS)

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The usual lines."""
        return conversations_of(entry)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs.

        Raises:
            TrainingError: the recipe leaves the maps frozen, or asks for averaged weights beside the others.
        """
        if run.recipe.ema and run.recipe.ema_export == "beside":
            why, fix = "the average would be saved with the maps in it", 'set ema_export = "replace"'
            raise TrainingError("no average beside hidden states", who="ema_export", why=why, fix=fix)
        maps = getattr(run.pipeline.model, MAPS, None)
        named = run.recipe.rates if run.recipe.rates or run.recipe.lora else {MAPS: self.map_rate}
        if maps is not None and not named.get(MAPS):
            fix = f"add {MAPS} = {self.map_rate:g} to the stage's rates"
            raise TrainingError("the maps of the hidden states would not learn", who="rates", fix=fix)
        return packed(run)

    def _pairs(self, model: Model) -> Sequence[tuple[int, int]]:
        """The pairs, counted from the start; what enters the last norm is one more than the layers."""
        depths = model.text.layers, self.opened(model)[1].layers
        for pair in self.layers:
            for whose, layer, depth in zip(("student", "teacher"), pair, depths, strict=True):
                if not -depth - 1 <= layer <= depth:
                    why, fix = f"the {whose} has {depth}", f"give {-depth - 1} to {depth}"
                    raise TrainingError(f"layer {layer} does not exist", who="distillation.layers", why=why, fix=fix)
        return [(one % (depths[0] + 1), two % (depths[1] + 1)) for one, two in self.layers]

    def _hidden(
        self, model: VisionLanguageModel, seen: Sequence[Tensor], shown: Sequence[Tensor]
    ) -> tuple[Tensor | None, Mapping[str, float]]:
        maps = getattr(model, MAPS, None)
        errors = []
        for number, (own, theirs) in enumerate(zip(seen, shown, strict=True)):
            mapped = own if maps is None else maps[str(number)](own)
            errors.append(mse_loss(mapped.float(), theirs.float()))
        error = torch.stack(errors).mean()
        return self.hidden * error, {"hidden": float(error.detach())}


def supervised_rows(model: VisionLanguageModel, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """A pack through a model -> supervised rows (N, D) after the last norm, and (N, D) that enter each layer."""
    wanted = batch.labels != -100
    seen: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor) -> None:
        if layer in layers:
            seen[layer] = hidden[wanted]

    embeds = model.embed(batch.ids, model.encode(batch.media))
    rows = model.hidden_states(embeds, batch.positions, batch.attend, tap if layers else None)
    return rows[wanted], [seen[layer] for layer in layers]
