"""From screens to rows: files of tasks for training and for tests, and what a report counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import define, field

from andes_andesui.elements import Element
from andes_andesui.tasks import TASKS, rows, turns
from andes_sdk.files import appearing_file, writing

SPLITS = ("train", "test")
EDGES = (8, 16, 24, 32, 48, 64, 128, 256, 512)
"""Of the shorter side of boxes in pixels, for the histogram."""


@define
class Counts:
    """What the screens of a folder hold."""

    screens: Counter[str] = field(factory=Counter)
    apps: dict[str, Counter[str]] = field(factory=dict)
    roles: Counter[str] = field(factory=Counter)
    unique: Counter[str] = field(factory=Counter)
    kinds: Counter[str] = field(factory=Counter)
    sides: Counter[str] = field(factory=Counter)
    refused: Counter[str] = field(factory=Counter)
    tasks: dict[str, Counter[str]] = field(factory=lambda: {split: Counter() for split in SPLITS})
    duplicates: list[str] = field(factory=list)
    failed: dict[str, str] = field(factory=dict)
    new: int = 0

    @property
    def elements(self) -> int:
        """Elements of all screens that are no duplicates."""
        return sum(self.roles.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `report.json`."""
        return {
            "screens": dict(self.screens), "applications": {app: dict(c) for app, c in self.apps.items()},
            "elements": self.elements, "roles": dict(self.roles.most_common()), "unique": dict(self.unique),
            "kinds": dict(self.kinds), "shorter_side": {name: self.sides[name] for name in sides()},
            "refused": dict(self.refused.most_common()), "tasks": {k: dict(v) for k, v in self.tasks.items()},
            "duplicates": self.duplicates, "failed": self.failed, "new_texts_of_test": self.new,
        }  # fmt: skip

    def add(self, screen: dict[str, Any]) -> None:
        """Count a screen that is no duplicate."""
        app = self.apps.setdefault(screen["app"], Counter())
        app["screens"] += 1
        app["elements"] += len(screen["elements"])
        app["test"] = int(screen["split"] == "test")
        self.screens[screen["split"]] += 1
        self.kinds[f"{screen['kind']} {screen['theme']}"] += 1
        self.refused.update(screen["refused"])
        for facts in screen["elements"]:
            element = Element.from_dict(facts)
            x1, y1, x2, y2 = element.box
            self.roles[element.role] += 1
            self.unique[element.role] += element.unique
            self.sides[_side(min(x2 - x1, y2 - y1))] += 1


def sides() -> list[str]:
    """Names of the histogram's bars."""
    return [*(f"below {edge}" for edge in EDGES), f"{EDGES[-1]} and more"]


def _side(value: float) -> str:
    return next((f"below {edge}" for edge in EDGES if value < edge), f"{EDGES[-1]} and more")


def write_rows(screens: Callable[[], Iterator[dict[str, Any]]], out: Path, questions: int, seed: int) -> Counts:
    """Write `{train,test}/<task>.jsonl` and `{train,test}/lines/<task>.jsonl` -> what was counted.

    Screens with the picture of an earlier one make no rows. Rows of test screens say whether their text is `new`: no
    training screen shows it.

    Args:
        screens: gives the lines of all screens, in one order; called twice.
        questions: rows of each task per screen, at most.
        seed: of what is chosen.
    """
    counts = Counts()
    known = {
        facts.get("text", "").casefold() or facts.get("name", "").casefold()
        for screen in screens()
        if screen["split"] == "train"
        for facts in screen.get("elements", ())
    }
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        for split in SPLITS:
            for path in (out / split / f"{task}.jsonl" for task in TASKS):
                for one in (path, path.parent / "lines" / path.name):
                    stack.enter_context(writing(one))
                    files[one] = stack.enter_context(
                        open(stack.enter_context(appearing_file(one)), "w", encoding="utf-8", errors="backslashreplace")
                    )
        for screen in _told_apart(screens(), counts):
            counts.add(screen)
            split = screen["split"]
            for task, part in rows(screen, questions, seed).items():
                if split == "test":
                    part = [{**row, "new": row["text"].casefold() not in known} for row in part]
                    counts.new += sum(row["new"] for row in part) if task == "grounding" else 0
                counts.tasks[split][task] += len(part)
                _write(files[out / split / f"{task}.jsonl"], ({**row, "image": f"../{row['image']}"} for row in part))
                if part:
                    line = {
                        "images": [f"../../{screen['image']}"], "conversations": [turns(task, row) for row in part],
                        "task": task, "app": screen["app"],
                    }  # fmt: skip
                    _write(files[out / split / "lines" / f"{task}.jsonl"], [line])
    return counts


def _write(file: Any, found: Iterable[dict[str, Any]]) -> None:
    for row in found:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _told_apart(screens: Iterable[dict[str, Any]], counts: Counts) -> Iterator[dict[str, Any]]:
    """Screens that were rendered and look like no earlier one; the others are counted."""
    seen = set[str]()
    for screen in screens:
        if "error" in screen:
            counts.failed[f"{screen['app']}/{screen['page']} {screen['size']}"] = screen["error"]
        elif screen["digest"] in seen:
            counts.duplicates.append(screen["id"])
        else:
            seen.add(screen["digest"])
            yield screen
