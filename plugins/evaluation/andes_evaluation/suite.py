"""Several tasks on one pipeline: data found before weights are read, answers and a report in one folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, frozen

from andes_sdk.errors import ConfigError, InputError
from andes_sdk.files import Journal, write_atomically

from .report import Shown, page, worst_of
from .rows import Rows, find
from .run import Outcome, Settings, TaskRun
from .tasks.catalogue import task_of
from .tasks.judged import Vet

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

    from .tasks.base import Task
    from .tasks.judged import Judge

Tell = Callable[[str, int], None]


@frozen
class Suite:
    """Tasks with their data.

    Attributes:
        parts: tasks and their rows, in the order in which they were named.
    """

    parts: Sequence[tuple[Task, Rows]]
    settings: Settings = field(factory=Settings)

    @classmethod
    def of(
        cls, names: Sequence[str], data: Path | None, settings: Settings | None = None, judge: Judge | None = None
    ) -> Suite:
        """Look tasks up, and find their data.

        Raises:
            ConfigError: a name that is no task, or is given twice, or a task that needs a judge where none was given.
            InputError: data that is not there.
        """
        parts: list[tuple[Task, Rows]] = []
        for name in names:
            task = task_of(name)
            if isinstance(task, Vet):
                task = evolve(task, judge=judge)
            if task.needs_judge and judge is None:
                fix = "give --judge http://…/v1 and --judge-model NAME"
                raise ConfigError("needs a model that judges answers", who=name, fix=fix)
            if any(task.name == other.name for other, _ in parts):
                raise ConfigError(f"the task {name!r} is named twice", who="andes eval", fix="name it once")
            parts.append((task, find(task.place, data)))
        return cls(parts, settings or Settings())

    def run(
        self, pipeline: Pipeline, *, model: str, out: Path | None = None, tell: Tell | None = None
    ) -> list[Outcome]:
        """Run every task; with `out`, its answers go to `<task>.jsonl`, and results and a report are written.

        Args:
            model: what the report calls the pipeline. tell: called with a task's name and the items just done.

        Raises:
            InputError: as `TaskRun.run`.
        """
        outcomes, shown = [], {}
        for task, rows in self.parts:
            file = None if out is None else out / f"{task.name}.jsonl"
            run = TaskRun(pipeline, task, rows, self.settings, file)
            if tell is not None:
                run.tell = partial(tell, task.name)
            outcomes.append(run.run())
            if out is not None:
                shown[task.name] = shown_of(run, worst_of(outcomes[-1]))
        if out is not None:
            results = {"model": model, "tasks": {one.task.name: one.to_dict() for one in outcomes}}
            write_atomically(out / "results.json", (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
            write_atomically(out / "report.html", page(model, outcomes, shown).encode("utf-8", "backslashreplace"))
        return outcomes


def shown_of(run: TaskRun, rows: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Rows with their pictures, which are read from the data once more."""
    wanted = {row["key"]: row for row in rows}
    found: dict[str, Shown] = {}
    for item in run.items(think=bool(run.options().think)):
        if len(found) == len(wanted):
            break
        if item.key in wanted:
            found[item.key] = Shown(wanted[item.key], item.pictures)
    return [found[key] for key in wanted if key in found]


def answers_of(folder: Path) -> dict[str, list[Any]]:
    """Task's name -> its answered rows in a run's folder.

    Raises:
        InputError: no run there.
    """
    files = sorted(folder.glob("*.jsonl"))
    found = {file.stem: Journal(file).rows(lambda row: bool(row["task"] and row["key"])) for file in files}
    if not found:
        raise InputError("holds no answers", who=str(folder), fix="give the --out folder of andes eval")
    return found
