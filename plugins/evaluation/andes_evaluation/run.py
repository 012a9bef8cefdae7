"""A task on a pipeline: asked in batches, each answer on file at once, scored, and gone on with after a stop."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, define, evolve, field, frozen

from andes_sdk.cli.console import errors_of
from andes_sdk.errors import AndesError, AssemblyError, InputError
from andes_sdk.files import Journal

from .content import hashed, whom
from .fields import Reader
from .figures import Figure, figures_of
from .items import Item

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import Answer
    from andes_sdk.runtime.options import GenerationOptions

    from .rows import Rows
    from .tasks.base import Task

NOTHING = "cannot be asked"


@frozen(kw_only=True)
class Settings:
    """How tasks are run.

    Attributes:
        limit: of how many items at most, the first ones; None: all.
        together: items that are decoded together. think: None leaves it to the model.
        given: options of generation that replace the task's, such as max_tokens, seed and adapter.
        adapter: folder of the adapter that `given` names; its content is part of what answers belong to.
        scale: factor by which pictures are enlarged instead of the task's.
    """

    limit: int | None = None
    together: int = 8
    think: bool | None = None
    given: Mapping[str, Any] = field(factory=dict)
    adapter: Path | None = None
    scale: float | None = None


@frozen(kw_only=True)
class Outcome:
    """What came of one task.

    Attributes:
        rows: answered items, as they stand on file. figures: by name, the main one first.
        failed: items that could not be asked; they score 0. cut_short: answers that ended at their longest.
    """

    task: Task
    rows: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Figure]
    failed: int
    cut_short: int
    seconds: float
    answered: int

    @property
    def main(self) -> Figure:
        """The main figure."""
        return self.figures[self.task.measure]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        main = self.main.to_dict()
        tokens = sum(row["tokens"] for row in self.rows)
        return {
            "measure": self.task.measure,
            "score": main["value"],
            "low": main["low"],
            "high": main["high"],
            "n": len(self.rows),
            "failed": self.failed,
            "cut_short": self.cut_short,
            "tokens": tokens,
            "seconds": round(self.seconds, 3),
            "answered_now": self.answered,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }


@define
class TaskRun:
    """One task on a pipeline.

    A row of its file has the item's key and `request`, a hash of what was asked of whom; then the answer (`said`), what
    counts of it (`answer`), what the rule read (`read`), `score` and `marks`; `truth` and `facts`; `errors` where the
    item could not be asked. A second run skips what is there, and tries again what failed.

    Attributes:
        out: the file of answers; None keeps them in memory.
        tell: called with the number of items done.
    """

    pipeline: Pipeline
    task: Task
    rows: Rows
    settings: Settings = field(factory=Settings)
    out: Path | None = None
    tell: Callable[[int], None] = lambda count: None
    _whom: str = field(init=False, default="")

    def run(self) -> Outcome:
        """Ask what is not answered yet -> figures of all.

        Raises:
            InputError: rows that are not the task's, or a file that holds answers to other requests.
        """
        begin = time.perf_counter()
        options = self.options()
        self._whom = "" if self.out is None else hashed([*whom(self.pipeline, self.settings.adapter), repr(self.task)])
        known = self._known()
        kept: dict[str, Mapping[str, Any]] = {}
        batch: list[tuple[Item, str]] = []
        done = 0
        for item in self.items(think=bool(options.think)):
            request = self.request(item, options)
            row = known.pop(item.key, None)
            if row is not None and row["request"] != request:
                raise self._foreign(f"item {item.key!r} was another, or asked of another model, or otherwise")
            if row is not None:
                known_of_item = {"cluster": item.cluster, "truth": item.truth, "facts": dict(item.facts)}
                kept[item.key] = {**row, **known_of_item, "question": item.question}
                self.tell(1)
                continue
            kept[item.key] = {}
            batch.append((item, request))
            if len(batch) == self.settings.together:
                done += self._ask(batch, options, kept)
                batch = []
        done += self._ask(batch, options, kept) if batch else 0
        rows = list(kept.values())
        return Outcome(
            task=self.task,
            rows=rows,
            figures=figures_of(self.task, rows, seed=options.seed),
            failed=sum("errors" in row for row in rows),
            cut_short=sum(row["finish"] == "length" for row in rows),
            seconds=time.perf_counter() - begin,
            answered=done,
        )

    def options(self) -> GenerationOptions:
        """How answers are decoded: the task's settings for the model's mode, and what was given."""
        think = self.settings.think
        if think is None:
            think = bool(getattr(self.pipeline.tokenizer, "thinking", False))
        return self.task.generation(think, **self.settings.given)

    def items(self, *, think: bool) -> Iterator[Item]:
        """Items in the order of the rows, each key once, up to the limit."""
        seen: dict[str, int] = {}
        count = 0
        for number, row in enumerate(self.rows):
            reader = Reader(row, f"{self.rows.path}, row {number + 1}", self.rows.folder)
            for item in self.task.items(reader, number, think=think):
                if self.settings.limit is not None and count >= self.settings.limit:
                    return
                count += 1
                seen[item.key] = seen.get(item.key, 0) + 1
                key = item.key if seen[item.key] == 1 else f"{item.key}#{seen[item.key]}"
                yield evolve(item, key=key, cluster=item.cluster or key)

    def request(self, item: Item, options: GenerationOptions) -> str:
        """A hash of the item, the model and the options."""
        asked = [hashlib.sha256(part).hexdigest() if isinstance(part, bytes) else part for part in item.parts]
        facts = [asked, item.start, self._scale, item.truth, self._whom, asdict(options)]
        return hashed(facts)

    @property
    def _scale(self) -> float:
        return self.task.scale if self.settings.scale is None else self.settings.scale

    def _known(self) -> dict[str, Mapping[str, Any]]:
        """Rows of an earlier run that need no work.

        A torn last line, rows of errors, and second rows of an item are removed from the file.
        """
        if self.out is None:
            return {}
        found: dict[str, Mapping[str, Any]] = {}

        def wanted(row: Any) -> bool:
            if row["task"] != self.task.name:
                raise TypeError(f"it is of the task {row['task']!r:.80}")
            check_row(row)
            if "errors" in row or row["key"] in found:
                return False
            found[row["key"]] = row
            return True

        try:
            Journal(self.out).keep(wanted)
            return found
        except InputError as error:
            raise self._foreign(f"{error.who} {error.what}: {error.why}") from None

    def _foreign(self, why: str) -> InputError:
        return InputError("cannot continue this file", who=str(self.out), why=why, fix="choose another --out")

    def _ask(
        self, batch: Sequence[tuple[Item, str]], options: GenerationOptions, kept: dict[str, Mapping[str, Any]]
    ) -> int:
        for item, request, answer in self._answered(batch, options):
            row = self._row(item, request, answer)
            if self.out is not None:
                Journal(self.out).add(row)
            kept[item.key] = row
            self.tell(1)
        return len(batch)

    def _answered(
        self, batch: Sequence[tuple[Item, str]], options: GenerationOptions
    ) -> Iterator[tuple[Item, str, Answer | list[dict[str, str]]]]:
        """Answers, or errors where an item cannot be asked."""
        try:
            asked = [item.messages(scale=self._scale) for item, _ in batch]
            answers = self.pipeline.generate_batch(asked, options)
        except (AndesError, AssemblyError) as error:
            if len(batch) == 1:
                yield (*batch[0], [e.to_dict() for e in errors_of(error)])
                return
            for one in batch:  # one bad item must not cost its neighbours their answers
                yield from self._answered([one], options)
            return
        for (item, request), answer in zip(batch, answers, strict=True):
            yield item, request, answer

    def _row(self, item: Item, request: str, answer: Answer | list[dict[str, str]]) -> dict[str, Any]:
        """The line of the file."""
        head = {"task": self.task.name, "key": item.key, "request": request, "cluster": item.cluster}
        told = {"question": item.question, "truth": item.truth, "facts": dict(item.facts)}
        if isinstance(answer, list):
            nothing = self.task.rate("", item.truth, item.facts)
            marks = dict.fromkeys(nothing.marks, 0.0)
            empty = {"said": "", "answer": "", "read": None, "score": 0.0, "marks": marks, "tokens": 0}
            return {**head, **told, **empty, "finish": NOTHING, "errors": answer}
        counts = self.task.cut(answer.text)
        rated = self.task.rate(counts, item.truth, item.facts)
        said = {"said": answer.text, "answer": counts, "read": rated.read, "score": rated.score}
        cost = {
            "tokens": len(answer.tokens),
            "prompt_tokens": answer.prompt_tokens,
            "kv_bytes": answer.kv_bytes,
            "first_token": round(answer.seconds["first_token"], 4),
            "decode": round(answer.seconds["decode"], 4),
        }
        return {**head, **told, **said, "marks": dict(rated.marks), **cost, "finish": answer.finish}


ROW = {"key": str, "request": str, "said": str, "answer": str, "marks": dict, "tokens": int, "finish": str}
"""What figures and reports take from a row on file, and its types."""


def check_row(row: Any) -> None:
    """Refuse a row that no run has written.

    Raises:
        LookupError, TypeError: a field that is not there, or of another kind, or a score that is none.
    """
    if wrong := [name for name, kind in ROW.items() if type(row[name]) is not kind]:
        raise TypeError(f"{', '.join(wrong)}: not what a run writes")
    numbers = (row["score"], *row["marks"].values())
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
        raise TypeError("its score or its marks are no numbers")
    if "read" not in row or not 0 <= row["score"] <= 1:
        raise LookupError("it has no answer as it was read, or a score outside 0 to 1")
