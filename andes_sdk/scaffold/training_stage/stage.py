"""The projector learns fast, the language model slowly, the encoder not at all. andes-training's loop does the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from andes_training.loss import next_token_loss
from attrs import frozen
from torch import Tensor

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.types import Model


@frozen
class Tuning:
    """See `andes_sdk.types.TrainingStage`."""

    rate: float
    share: float
    name = "example"

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate; what no prefix names is frozen."""
        return {"mlp": self.rate, "language_model": self.rate * self.share}

    def loss(self, model: Model, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (mean cross-entropy over its supervised tokens, figures to log)."""
        return next_token_loss(model, batch)
