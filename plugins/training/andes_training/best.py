"""The step at which a figure of a stage was best, and whether it is long ago."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from andes_sdk.errors import InputError
from andes_sdk.files import write_atomically
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from andes_training.run import StageRun

LOSS = "validation_loss"


@frozen
class Kept:
    """What a file says of a best state.

    Attributes:
        name, value: the figure, and how good it was. data: a hash of the data that it is of; empty where nobody knows.
    """

    step: int
    name: str
    value: float
    state: str
    data: str


@define(eq=False)
class Best:
    """What is known of one stage's best state.

    Attributes:
        name: the figure; a loss is best where it is smallest, any other where it is largest.
        data: a hash of the data that it is of.
        value: the best so far. step: when that was, 0 for never. better: whether it was the last look, and its state is
            not kept yet.
    """

    run: StageRun
    name: str
    data: str
    value: float = field(init=False)
    step: int = field(default=0, init=False)
    better: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.value = math.inf if self.name == LOSS else -math.inf
        known = self._known()
        if known is not None and (known.name, known.data) == (self.name, self.data):
            self.step, self.value = known.step, known.value

    @property
    def anew(self) -> bool:
        """Whether the best so far was of another figure or of other data, with which none is compared."""
        known = self._known()
        return known is not None and (known.name, known.data) != (self.name, self.data)

    def _known(self) -> Kept | None:
        known = best_states(self.run.out).get(self.run.index)
        return known if known is not None and known.step <= self.run.position.step else None

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
        """Name the state of the best figure; those named so are never deleted."""
        content = {"step": self.step, self.name: self.value, "state": state, "data": self.data}
        write_atomically(_path(self.run.out, self.run.index), json.dumps(content).encode())

    def state(self) -> Path:
        """Folder of the best state, once one was kept."""
        return self.run.out / best_states(self.run.out)[self.run.index].state


def best_states(out: Path) -> dict[int, Kept]:
    """Stage -> its best state."""
    found: dict[int, Kept] = {}
    for path in out.glob("best-[0-9]*.json"):
        try:
            data: Any = parse_json(path.read_bytes())
            number = int(path.stem.removeprefix("best-"))
            (name,) = set(data) - {"step", "state", "data"}
            step, value, state = int(data["step"]), float(data[name]), str(data["state"])
            found[number] = Kept(step, name, value, state, str(data.get("data", "")))
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError("is damaged", who=str(path), why=str(error), fix="delete it") from None
    return found


def _path(out: Path, index: int) -> Path:
    return out / f"best-{index:02d}.json"
