"""The step at which a figure of a stage was best, and whether it is long ago."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from andes_sdk.errors import InputError
from andes_sdk.files import write_atomically
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from andes_training.run import StageRun

LOSS = "validation_loss"


@define(eq=False)
class Best:
    """What is known of one stage's best state.

    Attributes:
        name: the figure; a loss is best where it is smallest, any other where it is largest.
        value: the best so far. step: when that was, 0 for never. better: whether it was the last look, and its state is
            not kept yet.
    """

    run: StageRun
    name: str
    value: float = field(init=False)
    step: int = field(default=0, init=False)
    better: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.value = math.inf if self.name == LOSS else -math.inf
        known = best_states(self.run.out).get(self.run.index)
        if known is not None and known[0] <= self.run.position.step:
            self.step, self.value, _ = known

    @classmethod
    def of(cls, run: StageRun) -> Best | None:
        """What a stage's recipe watches: what `best` names, else the validation's loss, else its first task."""
        recipe = run.recipe
        if recipe.best or recipe.validation or recipe.eval:
            return cls(run, recipe.watched)
        return None

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Take note of a step's figures."""
        value = values.get(self.name)
        if value is None or value != value:
            return
        if value < self.value if self.name == LOSS else value > self.value:
            self.value, self.step, self.better = float(value), step, True

    def over(self, step: int) -> bool:
        """Whether the figure has not become better for as many looks as the recipe's patience."""
        recipe = self.run.recipe
        every = recipe.validate_every if self.name == LOSS else recipe.eval_every
        return bool(recipe.patience and self.step) and step - self.step >= recipe.patience * (
            every or recipe.checkpoint_every
        )

    def keep(self, state: str) -> None:
        """The state of the best figure; those named so are never deleted."""
        self.better = False
        content = {"step": self.step, self.name: self.value, "state": state}
        write_atomically(_path(self.run.out, self.run.index), json.dumps(content).encode())

    def state(self) -> Path | None:
        """Folder of the best state, or None."""
        known = best_states(self.run.out).get(self.run.index)
        return None if known is None else self.run.out / known[2]


def best_states(out: Path) -> dict[int, tuple[int, float, str]]:
    """Stage -> step, figure and state where it was best."""
    found: dict[int, tuple[int, float, str]] = {}
    for path in out.glob("best-[0-9]*.json"):
        try:
            data: Any = parse_json(path.read_bytes())
            number = int(path.stem.removeprefix("best-"))
            (name,) = set(data) - {"step", "state"}
            found[number] = int(data["step"]), float(data[name]), str(data["state"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError("is damaged", who=str(path), why=str(error), fix="delete it") from None
    return found


def _path(out: Path, index: int) -> Path:
    return out / f"best-{index:02d}.json"
