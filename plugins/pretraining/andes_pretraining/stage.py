"""The three stages of pre-training (AndesVL report, training): what learns at which rate, on the same loss.

- `alignment`: the projector learns the language model's language; the encoder on request, the language model never.
- `joint`: every module at a low rate; image rows of some samples get random positions (`positions.py`).
- `multitask`: every module, on longer contexts and larger pictures.

Resolution, context and mixture belong to the recipe: `image`, `max_tokens`, `max_patches` and `data` of each stage.
Which modules train in stage 1 and every rate are ours; they were not published. The loss is the mean over all
supervised tokens of a pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from andes_training.feed import packed
from andes_training.loss import next_token_loss
from attrs import frozen

from .positions import OFF, Replacement

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Position


@frozen(kw_only=True)
class PretrainingStage:
    """A stage of pre-training.

    Attributes:
        module_rates: module prefix -> learning rate; 0 freezes.
        replacement: random positions of image rows.
    """

    name: str
    module_rates: Mapping[str, float]
    replacement: Replacement = OFF

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        return {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (mean cross-entropy in nats, figures)."""
        return next_token_loss(model, batch)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs, with positions replaced."""
        model = run.pipeline.model
        image, limit = model.tokenizer.placeholder("image"), model.text.max_positions
        for position, batch in packed(run):
            key = f"{run.seed}/{run.index}"
            yield position, self.replacement.apply(batch, image_token=image, limit=limit, key=key)
