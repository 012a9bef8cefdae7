"""Stages of training, and what observers hear of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import Tensor

    from .model import Model


@frozen(kw_only=True)
class Position:
    """Where a run stands: stage, optimizer steps done in it, epoch and the next sample of its order."""

    stage: int = 0
    step: int = 0
    epoch: int = 0
    offset: int = 0


class FeedRun(Protocol):
    """What a stage that makes its own batches may know of the run that it is part of; the loop hands it over.

    A loop may tell more: `andes_training.run.StageRun` is that of andes-training.
    """

    @property
    def samples(self) -> Sequence[Any]:
        """The stage's data: `entry`, `where`, `folder` and `source` of each."""

    @property
    def position(self) -> Position:
        """Where to begin."""

    @property
    def seed(self) -> int:
        """The recipe's; random numbers of a feed are keyed by it and the position."""

    @property
    def out(self) -> Path:
        """The run's folder, for what must survive a restart."""

    @property
    def rank(self) -> int:
        """This process among all, from 0."""

    @property
    def world(self) -> int:
        """How many processes train together."""


_Run = TypeVar("_Run", bound=FeedRun, contravariant=True)


@runtime_checkable
class TrainingStage(Protocol):
    """One stage of training: what trains, at which rate, on which data, towards which loss."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module name prefix -> learning rate; what no prefix names is frozen."""

    def loss(self, model: Model, batch: Any) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (scalar loss summed over supervised tokens / `batch.tokens`, figures to log)."""


@runtime_checkable
class ConversationStage(Protocol):
    """A training stage whose data lines have a shape of their own. Optional, beside `TrainingStage`."""

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Mapping[str, Any]]]:
        """One data line -> conversations about the same pictures, which share their common prefix in a pack.

        Raises:
            TrainingError: the line is not of that shape; the loop adds file and line.
        """


@runtime_checkable
class FeedingStage(Protocol[_Run]):
    """A training stage that makes its own batches. Optional, beside `TrainingStage`.

    A batch has `tokens` (its weight in the mean over batches and processes), `samples` and `to(device)`.
    """

    def feed(self, run: _Run) -> Iterator[tuple[Position, Any]]:
        """Batches for ever, each with the position right after it; feeding from a position repeats what followed it.

        Wrap `andes_training.feed.packed(run)` to add to the usual packs.
        """


@runtime_checkable
class StatefulStage(Protocol):
    """A training stage that learns something beside the weights, such as a running mean. Optional."""

    def state(self) -> Mapping[str, Tensor]:
        """What a saved run must hold, by name; the same on every process."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put it back; called before the first batch of a run that goes on."""


@runtime_checkable
class SteppingStage(Protocol):
    """A training stage that does something between steps, such as moving a schedule of its own. Optional."""

    def before_step(self, model: Model, step: int) -> None:
        """Called before the forward passes of each optimizer step, on every process.

        Args:
            model: what steps change; under sharding a divided copy of the pipeline's.
            step: optimizer steps done in this stage, from 0; a run that goes on begins with its position's. What it
                sets must follow from `step` alone, or be part of `StatefulStage.state` or of the model's buffers.
        """


@runtime_checkable
class ModelChange(Protocol):
    """What changes a model for the length of a stage, such as adapters or quantisers put around its layers.

    A training stage that has these methods too changes the model itself. The calls come in this order: `put_in`,
    `rates`, the steps, `save` in the first process, `take_out`.
    """

    @property
    def folder(self) -> str:
        """Where `save` writes, relative to the run's folder, such as 'adapters/sft'."""

    def put_in(self, model: Model) -> None:
        """Wrap or exchange modules, in place, before anything is frozen or divided.

        The same each time: a run that goes on does it again and then reads weights and buffers from its state. The
        model may be on the meta device, where a recipe is only looked at.

        Raises:
            TrainingError: the model does not fit.
        """

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate of what it put in; 0 for what it froze beside that."""

    def save(self, model: Model, folder: Path) -> None:
        """Write what was learnt through it; nothing, if that lies in the model.

        The folder appears whole or not at all, in place of one that is there from before.
        """

    def take_out(self, model: Model) -> None:
        """Leave the model as the stage hands it on: its own modules, what was learnt merged into them or not."""


@frozen(kw_only=True)
class Event:
    """Something observers may want to know: progress, metrics.

    Attributes:
        kind: "stage-start", "step", "checkpoint", "stage-end" or a plugin's own.
        step: optimizer step, if there is one.
        values: numbers and short texts.
    """

    kind: str
    step: int | None = None
    values: Mapping[str, Any] = field(factory=dict)
