"""A training stage: what trains, how fast, towards which loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import gt

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import TrainingStage


@frozen(eq=False, kw_only=True)
class Example:
    """Train the projector on pictures and text. Shortest use: `Pipeline.from_plugins([..., "example"])`."""

    contract = "1.1"

    rate: float = field(default=1e-3, validator=gt(0.0), metadata={"help": "learning rate of the projector"})
    share: float = field(default=0.1, validator=gt(0.0), metadata={"help": "the language model's share of that rate"})

    @hookimpl
    def andes_training_stages(self) -> Sequence[TrainingStage]:
        """One stage, named "example": write `stage = "example"` in a recipe."""
        from .stage import Tuning

        return [Tuning(self.rate, self.share)]
