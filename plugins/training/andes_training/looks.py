"""What a stage is measured by while it learns, on data that is not learnt from, and when that was best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from andes_training.best import LOSS, Best
from andes_training.data.bad import BadSamples
from andes_training.data.samples import stage_samples
from andes_training.evaluating import Evaluation, task_hash
from andes_training.validation import Validation, data_hash

if TYPE_CHECKING:
    from andes_sdk.types import Position
    from andes_training.processes import Processes
    from andes_training.run import StageRun
    from andes_training.step import Loss


@frozen(eq=False)
class Looks:
    """The looks of one stage: its validation, its tasks, and the figure whose best state is kept."""

    validation: Validation | None
    evaluation: Evaluation | None
    best: Best | None

    @classmethod
    def of(cls, run: StageRun, folder: Path, *, write: bool) -> Looks:
        """As the stage's recipe says; only the process that writes changes the file of bad samples."""
        recipe, validation = run.recipe, None
        if recipe.validation:
            bad = BadSamples.open(run.out, run.position, write=write, validation=True)
            validation = Validation(run, stage_samples(recipe.validation, folder), bad)
        return cls(validation, Evaluation(run, folder) if recipe.eval else None, _best(run, folder))

    def prove(self, loss: Loss, position: Position) -> None:
        """Look at a little of everything, so that what cannot be measured fails now, and not after many steps."""
        if self.validation is not None:
            self.validation.loss(loss, position, packs=1)
        if self.evaluation is not None:
            self.evaluation.figures(limit=1)

    def due(self, step: int) -> bool:
        """Whether a look follows a step."""
        return any(one is not None and one.due(step) for one in (self.validation, self.evaluation))

    def take(self, position: Position, loss: Loss, processes: Processes) -> dict[str, float]:
        """The figures that are due at a position; every process gets the same."""
        values: dict[str, float] = {}
        if self.validation is not None and self.validation.due(position.step):
            values[LOSS] = processes.all(self.validation.loss(loss, position))[0]
        if self.evaluation is not None and self.evaluation.due(position.step):
            values |= processes.all(self.evaluation.figures())[0]
        if self.best is not None:
            self.best.note(position.step, values)
        return values

    @property
    def better(self) -> bool:
        """Whether the last look was the best, and its state is not kept yet."""
        return self.best is not None and self.best.better

    def over(self, step: int) -> bool:
        """Whether the stage ends here though its steps are not done."""
        return self.best is not None and self.best.over(step)


def _best(run: StageRun, folder: Path) -> Best | None:
    recipe = run.recipe
    if not recipe.figures:
        return None
    name = recipe.watched
    tasks = [one for one in recipe.eval if name == f"eval/{one.task}"]
    return Best(run, name, task_hash(tasks[0], folder) if tasks else data_hash(recipe.validation, folder))
