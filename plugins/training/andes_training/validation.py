"""The loss on data that is not learnt from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample
from andes_training.data.samples import whole
from andes_training.packing import Batch, Row, collate, pack
from andes_training.reading import in_order, stage_maker, stage_samples

if TYPE_CHECKING:
    from andes_training.run import StageRun


@define(eq=False)
class Validation:
    """The validation of one stage.

    Attributes:
        folder: of its data.
    """

    run: StageRun
    folder: Path

    def due(self, step: int) -> bool:
        """Whether a step is followed by a validation."""
        recipe = self.run.recipe
        return step % (recipe.validate_every or recipe.checkpoint_every) == 0 or step == recipe.steps

    @torch.no_grad()
    def loss(self, module: torch.nn.Module, *, packs: int = 0) -> float:
        """The mean loss over all samples, each once and unchanged, weighted by their supervised tokens.

        Every process goes through all of them, so that all get the same.

        Args:
            module: the stage's loss. packs: stop after so many; 0 for all.

        Raises:
            TrainingError: a sample that cannot be used, or none, or a stage whose loss needs more than samples.
        """
        total = tokens = 0.0
        training = module.training
        module.eval()
        try:
            for number, batch in enumerate(self._batches(), 1):
                with self.run.autocast():
                    value, _ = module(batch.to(self.run.device))
                total, tokens = total + float(value) * batch.tokens, tokens + batch.tokens
                if number == packs:
                    break
        finally:
            module.train(training)
        if not tokens:
            raise TrainingError(
                "no validation sample can be used", who=self.run.recipe.stage, fix="run `andes data check`"
            )
        return total / tokens

    def _batches(self) -> Iterator[Batch]:
        run = self.run
        maker = stage_maker(run.pipeline, run.recipe, run.stage)
        samples = whole(stage_samples(run.recipe.validation, self.folder))

        def make(index: int) -> Row | None:
            try:
                return maker.row(samples[index], random.Random(0))
            except BadSample:
                if samples.source_of(index).on_error == "fail":
                    raise
                return None

        rows = (row for row in in_order(make, range(len(samples)), run.recipe.workers) if row is not None)
        for group in pack(rows, max_tokens=run.recipe.max_tokens, max_patches=run.recipe.max_patches):
            yield collate(group)
