"""The loss on data that is not learnt from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import define

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample, BadSamples
from andes_training.data.fingerprint import fingerprints
from andes_training.packing import Batch, Row, collate, pack
from andes_training.reading import in_order, stage_maker

if TYPE_CHECKING:
    from andes_sdk.types import Position
    from andes_training.data.samples import Samples
    from andes_training.recipe import DataRecipe
    from andes_training.run import StageRun


@define(eq=False)
class Validation:
    """The validation of one stage.

    Attributes:
        samples: of its data. bad: counts those that cannot be used.
    """

    run: StageRun
    samples: Samples
    bad: BadSamples

    def due(self, step: int) -> bool:
        """Whether a step is followed by a validation."""
        recipe = self.run.recipe
        return step % (recipe.validate_every or recipe.checkpoint_every) == 0 or step == recipe.steps

    @torch.no_grad()
    def loss(self, module: torch.nn.Module, position: Position, *, packs: int = 0) -> float:
        """The mean loss over all samples, each once and unchanged, weighted by their supervised tokens.

        Every process goes through all of them, so that all get the same.

        Args:
            module: the stage's loss. position: where the stage stands. packs: stop after so many; 0 for all.

        Raises:
            TrainingError: a sample that cannot be used where its file's `on_error` is "fail", more of them than
                `max_errors`, or no other; or a stage whose loss needs more than samples.
        """
        total = tokens = 0.0
        training = module.training
        module.eval()
        try:
            for number, batch in enumerate(self._batches(position), 1):
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

    def _batches(self, position: Position) -> Iterator[Batch]:
        recipe = self.run.recipe
        for group in pack(self._rows(position), max_tokens=recipe.max_tokens, max_patches=recipe.max_patches):
            yield collate(group)

    def _rows(self, position: Position) -> Iterator[Row]:
        run, order = self.run, self.samples.once(self.run.seed)
        maker = stage_maker(run.pipeline, run.recipe, run.stage)

        def make(index: int) -> Row | BadSample:
            try:
                return maker.row(self.samples[index], random.Random(0))
            except BadSample as error:
                return error

        for index, made in zip(order, in_order(make, order, run.recipe.workers), strict=True):
            if isinstance(made, BadSample):  # it stands before `position`, or a state there would not cover it
                source = self.samples.source_of(index)
                self.bad.take(made, source, epoch=position.epoch, offset=position.offset - 1)
            else:
                yield made


def data_hash(recipes: Sequence[DataRecipe], folder: Path) -> str:
    """A hash of what a validation compares losses on: its files, and how many samples of each."""
    facts = [fingerprints(recipes, folder), [(str(r.path), r.samples) for r in recipes]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
