"""Samples that cannot be used: skipped and counted, or fatal, as their file's recipe says.

Every one is a line of `bad_samples.jsonl` in the run's folder. A run that goes on after a kill first cuts the lines
that its state does not cover, so the file and the counts read as if the run had never stopped.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from andes_sdk.errors import TrainingError
from andes_sdk.files import Journal

if TYPE_CHECKING:
    from andes_sdk.types import Position
    from andes_training.recipe import DataRecipe

FILE = "bad_samples.jsonl"
REASONS = {
    "json": "the line or member cannot be read",
    "shape": "no conversations in it, or a key that nothing reads",
    "message": "a message that breaks the rules for messages",
    "picture": "a picture that is missing, damaged, not where the text says, or not shared by all conversations",
    "box": "a box outside its picture, or written wrongly",
    "think": "`think` and the text contradict each other",
    "unsupervised": "no assistant text to learn from: no answer, or blank ones",
    "tokens": "longer than the stage's `max_tokens` or the model's positions",
    "patches": "more patches than the stage's `max_patches`",
}
"""Reason -> what it means."""


class BadSample(TrainingError):
    """A sample that cannot be used for training.

    Attributes:
        reason: one of `REASONS`.
    """

    def __init__(self, what: str, *, reason: str = "shape", who: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what, who=who, why=why, fix=fix)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.what, self.reason, self.who, self.why, self.fix)

    def to_dict(self) -> dict[str, str]:
        """The same facts as plain data."""
        return {**super().to_dict(), "reason": self.reason}


def _rebuild(what: str, reason: str, who: str, why: str, fix: str) -> BadSample:
    return BadSample(what, reason=reason, who=who, why=why, fix=fix)


@define(eq=False)
class BadSamples:
    """What a stage has skipped so far.

    Attributes:
        path: the file for them, or None to keep no file.
        stage: number of the stage in its recipe.
        validation: whether these are samples of its validation, which are counted apart.
    """

    path: Path | None = None
    stage: int = 0
    validation: bool = False
    _seen: dict[tuple[str, str], dict[str, Any]] = field(factory=dict, init=False)
    _files: Counter[str] = field(factory=Counter, init=False)

    @classmethod
    def open(cls, folder: Path, position: Position, *, write: bool = True, validation: bool = False) -> BadSamples:
        """Those of a run that stands at `position`; only the process that writes changes the file."""
        bad = cls(folder / FILE, position.stage, validation)
        bad._cut(position, write=write)
        if not write:
            bad.path = None
        return bad

    def take(self, error: BadSample, source: DataRecipe, *, epoch: int, offset: int) -> None:
        """Count a sample, or stop the run.

        Args:
            error: what is wrong with it, with `who` naming file and line.
            source: its file's part of the recipe.
            epoch, offset: where it stands in the order.

        Raises:
            BadSample: the file's `on_error` is "fail".
            TrainingError: the file has more bad samples than its `max_errors`.
        """
        if source.on_error == "fail":
            raise error
        key = (error.who, error.reason)
        if key in self._seen:  # of an earlier epoch
            return
        place: dict[str, Any] = {"stage": self.stage, "epoch": epoch, "offset": offset, "file": str(source.path)}
        place |= {"validation": True} if self.validation else {}
        row = {**place, "where": error.who, "reason": error.reason, "what": error.what, "why": error.why}
        self._seen[key] = row
        if self.path is not None:
            Journal(self.path).add(row)
        self._files[row["file"]] += 1
        if (count := self._files[row["file"]]) > source.max_errors:
            raise TrainingError(
                f"{count} samples cannot be used, max_errors is {source.max_errors}",
                who=row["file"],
                why=", ".join(f"{reason}: {n}" for reason, n in self.counts().items()) + f"; the last: {error}",
                fix="run `andes data check` on it, or raise max_errors",
            ) from error

    def counts(self) -> dict[str, int]:
        """Samples skipped so far by reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self._seen).most_common())

    def finish(self, position: Position) -> dict[str, Any]:
        """What was skipped before `position`, where the stage ends; empty if nothing was.

        What threads met ahead of it is forgotten, so the same run always ends with the same file.
        """
        if not self._seen:
            return {}
        self._seen = {key: row for key, row in self._seen.items() if _place(row) < _now(position)}
        if self.path is not None:
            self._cut(position, write=True)
        facts = {"skipped": len(self._seen), "reasons": self.counts(), "file": str(self.path or "")}
        facts |= {"validation": True} if self.validation else {}
        return facts if self._seen else {}

    def _cut(self, position: Position, *, write: bool) -> None:
        """Read what the file holds of before `position`, and drop the rest."""
        if self.path is None:
            return
        self._seen, self._files = {}, Counter()
        journal = Journal(self.path)
        look = journal.keep if write else journal.rows
        for row in look(lambda row: _whole(row) < _now(position)):
            if row["stage"] == position.stage and row.get("validation", False) is self.validation:
                self._seen[row["where"], row["reason"]] = row
                self._files[row["file"]] += 1


def _place(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["stage"], row["epoch"], row["offset"]


def _whole(row: dict[str, Any]) -> tuple[int, int, int]:
    """The place of a row that was read. Raises KeyError, TypeError: it is no row of this file."""
    if wrong := [key for key in ("file", "where", "reason") if not isinstance(row[key], str)]:
        raise TypeError(f"{', '.join(wrong)}: no text")
    return _place(row)


def _now(position: Position) -> tuple[int, int, int]:
    return position.stage, position.epoch, position.offset
