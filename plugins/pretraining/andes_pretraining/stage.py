"""Stage 1, alignment: the projector learns the language model's language (AndesVL report, training).

Which modules train in stage 1 is not public; the projector always does here, the encoder on request, the language model
never. The loss is the mean over all supervised tokens of a pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk.training.loss import next_token_loss

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.training.packing import Batch


@frozen(kw_only=True)
class Alignment:
    """Trains `mlp`, and `vision_encoder` if its rate is above zero."""

    projector_rate: float
    encoder_rate: float
    name: str = "alignment"

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        return {"mlp": self.projector_rate} | ({"vision_encoder": self.encoder_rate} if self.encoder_rate else {})

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (mean cross-entropy in nats, figures)."""
        return next_token_loss(model, batch)
