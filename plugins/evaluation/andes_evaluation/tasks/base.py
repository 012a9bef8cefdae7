"""What all tasks share: a row becomes items, an answer is cut and rated, ratings become figures.

Figures are functions of sums over clusters, so that the bootstrap can draw clusters and add them up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from andes_verifiers.answers import final_answer
from attrs import field, frozen

from andes_evaluation.fields import Reader
from andes_evaluation.items import Answered, Item, Rated, interleaved
from andes_evaluation.rows import Place
from andes_sdk.runtime.options import GenerationOptions

Sums = Mapping[str, np.ndarray]
"""Name -> sums over the clusters that were drawn, one per draw."""

SHORT, LONG, THINKING = 512, 4096, 32768
"""Most tokens of an answer: of a few words, of one that reasons, and of a Thinking model (the published scripts')."""


@frozen(kw_only=True)
class Task:
    """A benchmark.

    Attributes:
        name: as users write it. place: where its data may lie. title: for tables.
        measure: what its main figure is called.
        scale: pictures are enlarged by this factor, as in the published evaluation.
        max_tokens: of an answer without thinking. suffix: what is asked of the form of the answer.
        penalty: presence penalty of Thinking models: they sample where it is not 0, and else decode greedily.
    """

    name: str
    place: Place
    title: str = ""
    measure: str = "accuracy"
    scale: float = 1.0
    max_tokens: int = SHORT
    suffix: str = ""
    penalty: float = 0.0
    groups: tuple[str, ...] = field(default=("category",))
    """Fields of a row by whose values there are figures of their own."""
    needs_judge: ClassVar[bool] = False

    # ------------------------------------------------------------ what is asked

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """The questions of one row, `number` from 0.

        Raises:
            InputError: a row that lacks what the task needs.
        """
        raise NotImplementedError

    def made(self, reader: Reader, number: int, text: str, truth: Any, **more: Any) -> Item:
        """An item of a row: its pictures and a text, with the row's groups among its facts."""
        facts = {**self.grouped(reader), **more.pop("facts", {})}
        key = str(reader.get("index", "id", "question_id", "pid", "questionId") or number)
        question = more.pop("question", text)
        parts = interleaved(text, reader.pictures())
        return Item(key=key, parts=parts, truth=truth, facts=facts, question=question, **more)

    def grouped(self, reader: Reader) -> dict[str, Any]:
        """The row's groups, as facts."""
        found = {name: str(reader.row[name]) for name in self.groups if reader.has(name)}
        return {"groups": found} if found else {}

    def generation(self, think: bool, **given: Any) -> GenerationOptions:
        """How answers are decoded: Instruct greedily, Thinking as published (greedily, for mathematics sampled)."""
        options: dict[str, Any] = {"max_tokens": THINKING if think else self.max_tokens, "think": think}
        if think and self.penalty:
            options |= {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "presence_penalty": self.penalty}
        return GenerationOptions(**{**options, **{k: v for k, v in given.items() if v is not None}})

    # ------------------------------------------------------------ what is answered

    def cut(self, said: str) -> str:
        r"""The part of an answer that counts: after `</think>`, `<answer>`, "the answer is", in `\boxed{}`."""
        return final_answer(said)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """Score what `cut` left of an answer."""
        raise NotImplementedError

    # ------------------------------------------------------------ figures

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """What one cluster adds to the sums: here scores and their number, in all and by group."""
        sums = {"score": 0.0, "n": 0.0}
        for one in cluster:
            names = ["", *(f"{kind}: {value}" for kind, value in one["facts"].get("groups", {}).items())]
            for name in names:
                add(sums, joined("score", name), one["score"])
                add(sums, joined("n", name), 1.0)
        return sums

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Sums -> figures, the main one first."""
        found = {self.measure: ratio(sums["score"], sums["n"])}
        for name in sums:
            if name.startswith("score/"):
                group = name.removeprefix("score/")
                found[group] = ratio(sums[name], sums[joined("n", group)])
        return found


def joined(name: str, group: str) -> str:
    """Name of a sum, of all or of a group."""
    return f"{name}/{group}" if group else name


def add(sums: dict[str, float], name: str, value: float) -> None:
    """Add to a sum that may not be there yet."""
    sums[name] = sums.get(name, 0.0) + value


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """A quotient; 0 where nothing was counted."""
    made: np.ndarray = np.divide(top, bottom, out=np.zeros(np.shape(top)), where=np.asarray(bottom) > 0)
    return made
