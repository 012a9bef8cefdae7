"""Two runs compared, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from andes_sdk.errors import InputError

from .figures import Difference, compared
from .suite import answers_of
from .tasks.catalogue import TASKS


@frozen
class Comparison:
    """Differences by task, and the tasks that one of the runs lacks."""

    differences: Mapping[str, Difference]
    not_in_both: Sequence[str]


def compare_runs(one: Path, other: Path, *, seed: int = 0) -> Comparison:
    """Compare the answers in two folders of `andes eval --out`.

    Raises:
        InputError: a folder without answers, no task in both, or answers to different truths.
    """
    first, second = answers_of(one), answers_of(other)
    both = [name for name in first if name in second and name in TASKS]
    if not both:
        why = f"{one} has {', '.join(first)}; {other} has {', '.join(second)}"
        raise InputError("the runs have no task in common", who="andes eval compare", why=why, fix="run the same tasks")
    for name in both:
        truths = {row["key"]: row["truth"] for row in first[name]}
        moved = [row["key"] for row in second[name] if truths.get(row["key"], row["truth"]) != row["truth"]]
        if moved:
            why = f"{len(moved)} items have other truths, such as {moved[0]!r}"
            raise InputError("the runs are on different data", who=name, why=why, fix="run both on the same files")
    differences = {name: compared(TASKS[name], first[name], second[name], seed=seed) for name in both}
    return Comparison(differences, sorted({*first, *second} - set(both)))
