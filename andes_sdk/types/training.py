"""Stages of training, and what observers hear of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from andes_training.run import StageRun
    from andes_training.state import Position
    from torch import Tensor

    from .model import Model


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
class FeedingStage(Protocol):
    """A training stage that makes its own batches. Optional, beside `TrainingStage`.

    A batch has `tokens` (its weight in the mean over batches and processes), `samples` and `to(device)`.
    """

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Any]]:
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
