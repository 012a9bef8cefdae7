"""Whether a saved state may go on: under which recipe and on which data it was made, and where it stands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import TrainingError
from andes_training.data.fingerprint import fingerprints
from andes_training.recipe import differences

if TYPE_CHECKING:
    from andes_sdk.types import Position
    from andes_training.recipe import Recipe
    from andes_training.state import Saved

MOST = 1 << 40
"""Steps, epochs and offsets beyond this are damage."""


def check_saved(saved: Saved, recipe: Recipe, path: Path, *, accept_changed_data: bool = False) -> list[str]:
    """Refuse a state that this recipe, or its data, cannot go on with -> what differs and does no harm, for people.

    Raises:
        TrainingError: the state is damaged, was made by another recipe, or its data has changed since.
    """
    position = saved.position
    known = position.stage < len(recipe.stages) and max(position.step, position.epoch, position.offset) <= MOST
    _refuse_damage(known, position, path)
    told, wrong = list[str](), list[str]()
    for place, before, now in differences(saved.recipe, recipe.facts()):
        line = f"{place}: {_short(before)} before, {_short(now)} now"
        (told if _harmless(place, before, now, position) else wrong).append(line)
    if wrong:
        raise TrainingError(
            "the saved state was made by another recipe",
            who=str(path),
            why="; ".join(wrong),
            fix="restore the recipe, or start anew with another --out folder",
        )
    stage = recipe.stages[position.stage]
    _refuse_damage(position.step <= (stage.steps or MOST), position, path)
    changed = _changed(saved.data, fingerprints(stage.data, recipe.folder))
    if changed and not accept_changed_data:
        raise TrainingError(
            "the data has changed since the state was saved",
            who=", ".join(changed),
            why="samples would be learnt twice, and others never",
            fix="restore it; or say --accept-changed-data (accept_changed_data=True), or use another --out folder",
        )
    return [*told, *(f"{name}: other data than before" for name in changed)]


def _harmless(place: str, before: Any, now: Any, position: Position) -> bool:
    """More steps than before, of a stage that is not over; another name of the run."""
    if place == "name":
        return True
    found = re.fullmatch(r"stages\.(\d+)\.(steps|epochs)", place)
    whole = isinstance(before, int) and isinstance(now, int)
    return found is not None and whole and 0 < before < now and int(found[1]) >= position.stage


def _refuse_damage(fits: bool, position: Position, path: Path) -> None:
    if not fits:
        fix = "delete it to use the one before"
        raise TrainingError("the saved state is damaged", who=str(path), why=f"it stands at {position}", fix=fix)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Sequence[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
