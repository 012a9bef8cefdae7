"""Supervised fine-tuning (AndesVL report, section on SFT): every module learns, the loss is on assistant tokens only.

The mean is over all supervised tokens of a pack, so that long answers weigh by their length. Left out: the curation of
the data, which is a matter of data filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from andes_training.loss import next_token_loss
from attrs import frozen

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel


@frozen
class SupervisedFineTuning:
    """Trains the language model, the projector and the encoder, each at its own rate; a rate of 0 freezes."""

    rate: float
    projector_rate: float
    encoder_rate: float
    name: str = "sft"

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        rates = {"language_model": self.rate, "mlp": self.projector_rate, "vision_encoder": self.encoder_rate}
        return {prefix: rate for prefix, rate in rates.items() if rate > 0}

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (mean cross-entropy in nats, figures)."""
        return next_token_loss(model, batch)
