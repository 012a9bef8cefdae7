"""The stage `grpo`: which modules learn, what feeds it, and the loss of a pack of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen

from andes_sdk.errors import TrainingError

from .objective import Surrogate, grpo_loss
from .policy import answer_logps

if TYPE_CHECKING:
    from andes_training.data.samples import Sample
    from andes_training.packing import Batch
    from andes_training.recipe import StageRecipe
    from andes_training.run import StageRun
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Position

    from .options import Options

FIGURES = ("reward", "flat", "truncated", "length")
"""Figures of a whole step, which each of its packs carries: mean reward, share of groups whose rewards are all equal,
share of answers that were cut, mean tokens of an answer."""


@frozen(eq=False)
class GroupRelative:
    """Group-relative policy optimisation on prompts with rewards.

    A pack's extras: per answer `advantage`, `keep`, `length`; per supervised token `sampled`, and `old` or `reference`
    where they are needed; `figures` of the step.
    """

    options: Options
    name: str = "grpo"
    surrogate: Surrogate = field(init=False)

    @surrogate.default
    def _surrogate(self) -> Surrogate:
        o = self.options
        return Surrogate(
            o.normalise, o.level, o.clip_low, o.clip_high, o.kl, o.kl_correction, o.mismatch_cap, o.max_answer
        )

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        o = self.options
        projector = o.rate if o.projector_rate is None else o.projector_rate
        encoder = o.rate if o.encoder_rate is None else o.encoder_rate
        rates = {"language_model": o.rate, "mlp": projector, "vision_encoder": encoder}
        return {prefix: rate for prefix, rate in rates.items() if rate > 0}

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """Answers to the run's prompts, scored, in packs; see `andes_grpo.rollout`."""
        from .rollout import Rollouts

        return Rollouts.of(run, self.options).batches()

    def line_check(self, pipeline: Pipeline, recipe: StageRecipe) -> Callable[[Sample], object]:
        """Whether a line is a prompt with room for an answer, for `andes data check`."""
        from .prompts import PromptMaker

        maker = PromptMaker.of(pipeline, self.options.max_answer, recipe)
        return lambda sample: maker.prompt(sample, ())

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A pack of answers -> (scalar, figures).

        Raises:
            TrainingError: a batch that `feed` did not make.
        """
        extras = batch.extras
        if "advantage" not in extras:
            raise TrainingError("a batch without advantages", who="grpo", fix="take batches from the stage's `feed`")
        logps, entropy = answer_logps(model, batch, self.options.temperature)
        lengths = extras["length"]
        value, figures = grpo_loss(
            logps,
            advantages=extras["advantage"],
            answer=torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths),
            keep=extras["keep"],
            surrogate=self.surrogate,
            old=extras.get("old"),
            sampled=extras["sampled"],
            reference=extras.get("reference"),
        )
        step = dict(zip(FIGURES, extras["figures"].tolist(), strict=True))
        return value, {**step, "entropy": float(entropy.mean()), **figures}
