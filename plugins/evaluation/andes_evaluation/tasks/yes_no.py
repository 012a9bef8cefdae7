"""Yes or no: POPE, MME, HallusionBench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from andes_evaluation.fields import Reader
from andes_evaluation.items import Answered, Item, Rated
from andes_evaluation.rules import yes_no as rules

from .base import Sums, Task, add, joined, ratio

CONCLUDE = 'Conclude with "The answer is yes" or "The answer is no"'

PERCEPTION = (
    "OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene",
)  # fmt: skip
COGNITION = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


@frozen(kw_only=True)
class YesNo(Task):
    """A question that is answered by yes or no, and a conclusion asked for as AndesVL's evaluation does."""

    suffix: str = f"{CONCLUDE}, and give a brief explanation."
    thinking_suffix: str = f"{CONCLUDE} /think"

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row."""
        question, truth = reader.text("question").strip(), self.truth(reader)
        prompt = f"{question}\n{self.thinking_suffix if think else self.suffix}"
        yield self.made(reader, number, prompt, truth, question=question)

    def truth(self, reader: Reader) -> str:
        """ "yes" or "no"; HallusionBench's own files say 1 or 0."""
        given = str(reader.need("answer", "gt_answer")).strip().rstrip(".").lower()
        truth = {"1": "yes", "0": "no"}.get(given, given)
        if truth not in ("yes", "no"):
            raise reader.wrong(f"has the answer {given[:40]!r}", "it is neither yes nor no")
        return truth

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where the answer says what is true; an answer that says neither is wrong."""
        said = rules.word(answer)
        return Rated(float(said == truth), said or None)


@frozen(kw_only=True)
class Pope(YesNo):
    """POPE (arXiv 2305.10355): objects that are there or not. The main figure is F1 of saying yes."""

    measure: str = "f1"

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """Counts of (truth, said), in all and for each of the kinds that a question belongs to."""
        sums: dict[str, float] = {}
        for one in cluster:
            kinds = one["facts"].get("groups", {}).get("category", "")
            for name in ("", *filter(None, (kind.strip() for kind in kinds.split(",")))):
                add(sums, joined("n", name), 1.0)
                add(sums, joined("right", name), one["score"])
                add(sums, joined("true", name), float(one["truth"] == "yes"))
                add(sums, joined("said", name), float(one["read"] == "yes"))
                add(sums, joined("both", name), float(one["read"] == one["truth"] == "yes"))
        return sums

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """F1, accuracy, precision, recall, and how much more often it says yes than is true."""
        found = self._of(sums, "")
        for name in [n.removeprefix("n/") for n in sums if n.startswith("n/")]:
            found |= {
                f"{name} {key}": value for key, value in self._of(sums, name).items() if key in ("f1", "accuracy")
            }
        return found

    def _of(self, sums: Sums, name: str) -> dict[str, np.ndarray]:
        n, right, true, said, both = (sums[joined(key, name)] for key in ("n", "right", "true", "said", "both"))
        rates = {"accuracy": ratio(right, n), "precision": ratio(both, said), "recall": ratio(both, true)}
        return {"f1": ratio(2 * both, true + said), **rates, "yes bias": ratio(said - true, n)}


@frozen(kw_only=True)
class Mme(YesNo):
    """MME (arXiv 2306.13394): two questions a picture; each kind gives its accuracy and the share of pictures with both
    right, in per cent. The main figure is the sum over all kinds.
    """

    suffix: str = "Give a very brief answer."
    thinking_suffix: str = "Give a very brief answer."
    measure: str = "total"

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, in a cluster with the other of its picture."""
        kind = reader.text("category")
        picture = reader.get("image_path", "question_id") or number // 2
        for item in super().items(reader, number, think=think):
            yield Item(
                key=f"{item.key}/{number}", parts=item.parts, truth=item.truth, question=item.question,
                facts={"kind": kind}, cluster=f"{kind}/{picture}",
            )  # fmt: skip

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where the first characters say what is true."""
        said = rules.opening(answer)
        return Rated(float(said == truth), said or None)

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """One picture."""
        kind = cluster[0]["facts"]["kind"]
        scores = [one["score"] for one in cluster]
        return {f"score/{kind}": sum(scores), f"n/{kind}": float(len(scores)), f"both/{kind}": min(scores),
                f"pictures/{kind}": 1.0}  # fmt: skip

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """The total, perception, cognition, and each kind (0 to 200)."""
        kinds = {
            kind: 100 * (ratio(sums[f"score/{kind}"], sums[f"n/{kind}"])
                         + ratio(sums[f"both/{kind}"], sums[f"pictures/{kind}"]))
            for kind in (name.removeprefix("n/") for name in sums if name.startswith("n/"))
        }  # fmt: skip
        nothing = 0.0 * next(iter(kinds.values()))
        found = {"total": sum(kinds.values(), nothing)}
        for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
            found[name] = sum((kinds[kind] for kind in members if kind in kinds), nothing)
        return {**found, **kinds}


@frozen(kw_only=True)
class Hallusion(YesNo):
    """HallusionBench (arXiv 2310.14566): figures and questions in sets.

    aAcc counts questions, fAcc figures whose questions are all right, qAcc questions that are right about all their
    figures. The main figure is the mean of the three, as VLMEvalKit and AndesVL report.
    """

    measure: str = "mean"
    groups: tuple[str, ...] = field(default=())

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, in a cluster with its set; names stand in fields or in the index."""
        index = str(reader.get("index") or "").split("_")
        if reader.has("set_id"):
            places = [reader.text(name) for name in ("set_id", "figure_id", "question_id")]
        elif len(index) >= 6:
            places = index[3:6]
        else:
            raise reader.wrong("names no set, figure and question", "it lacks set_id, and its index does not hold them")
        kind = reader.text("l2-category", "subcategory", "category")
        for item in super().items(reader, number, think=think):
            yield Item(
                key="_".join([str(reader.get("category") or ""), kind, *places]), parts=item.parts, truth=item.truth,
                question=item.question, facts={"figure": places[1], "asked": places[2]}, cluster=f"{kind}_{places[0]}",
            )  # fmt: skip

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """One set: its questions, its figures, and the questions over figures."""
        sums = {"score": sum(one["score"] for one in cluster), "n": float(len(cluster))}
        for name in ("figure", "asked"):
            by: dict[str, float] = {}
            for one in cluster:
                at = one["facts"][name]
                by[at] = min(by.get(at, 1.0), one["score"])
            sums |= {name: sum(by.values()), f"{name}s": float(len(by))}
        return sums

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """The mean, then aAcc, fAcc and qAcc."""
        rates = {
            "aAcc": ratio(sums["score"], sums["n"]),
            "fAcc": ratio(sums["figure"], sums["figures"]),
            "qAcc": ratio(sums["asked"], sums["askeds"]),
        }
        return {"mean": sum(rates.values(), 0.0 * sums["n"]) / 3, **rates}
