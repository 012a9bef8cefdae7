"""The loss on data that is not learnt from, and the step at which it was smallest."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from andes_sdk.errors import InputError, TrainingError
from andes_sdk.files import write_atomically
from andes_sdk.reading import parse_json
from andes_training.data.bad import BadSample, BadSamples
from andes_training.data.fingerprint import fingerprints
from andes_training.packing import Batch, Row, collate, pack
from andes_training.reading import in_order, stage_maker

if TYPE_CHECKING:
    from andes_sdk.types import Position
    from andes_training.data.samples import Samples
    from andes_training.recipe import DataRecipe
    from andes_training.run import StageRun


Best = tuple[int, float, str, str]
"""Step, loss and state of the smallest loss, and a hash of the data that it is of; empty where nobody knows."""


@define(eq=False)
class Validation:
    """The validation of one stage.

    Attributes:
        samples: of its data. bad: counts those that cannot be used. data: a hash of what is compared.
        best: the smallest loss so far. better: whether that was the last one.
    """

    run: StageRun
    samples: Samples
    bad: BadSamples
    data: str
    best: float = field(default=math.inf, init=False)
    better: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        known = self._known()
        if known is not None and known[3] == self.data:
            self.best = known[1]

    @property
    def anew(self) -> bool:
        """Whether the smallest loss so far was of other data, with which none is compared."""
        known = self._known()
        return known is not None and known[3] != self.data

    def _known(self) -> Best | None:
        known = best_states(self.run.out).get(self.run.index)
        return known if known is not None and known[0] <= self.run.position.step else None

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

    def note(self, loss: float) -> None:
        """Take note of a whole validation."""
        self.better = loss < self.best
        self.best = min(loss, self.best) if loss == loss else self.best

    def keep(self, step: int, state: str) -> None:
        """The state of the smallest loss; those named so are never deleted."""
        content = {"step": step, "validation_loss": self.best, "state": state, "data": self.data}
        write_atomically(_path(self.run.out, self.run.index), json.dumps(content).encode())

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


def best_states(out: Path) -> dict[int, Best]:
    """Stage -> its smallest validation loss."""
    found: dict[int, Best] = {}
    for path in out.glob("best-[0-9]*.json"):
        try:
            data: Any = parse_json(path.read_bytes())
            number = int(path.stem.removeprefix("best-"))
            found[number] = (
                int(data["step"]),
                float(data["validation_loss"]),
                str(data["state"]),
                str(data.get("data", "")),
            )
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError("is damaged", who=str(path), why=str(error), fix="delete it") from None
    return found


def _path(out: Path, index: int) -> Path:
    return out / f"best-{index:02d}.json"
