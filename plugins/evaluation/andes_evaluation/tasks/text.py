"""Answers in words: ChartQA, DocVQA, InfoVQA, TextVQA, OCRBench, MTVQA, AndesUI's descriptions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from andes_verifiers.answers import after_thinking
from attrs import field, frozen

from andes_evaluation.fields import Reader, plain_list
from andes_evaluation.items import Item, Rated
from andes_evaluation.rules import text as rules

from .base import Task

BRIEFLY = "Answer the question using a single word or phrase."


@frozen(kw_only=True)
class Words(Task):
    """A question and its right answers."""

    suffix: str = BRIEFLY

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row."""
        question = reader.text("question", "query")
        prompt = f"{question}\n{self.suffix}" if self.suffix else question
        yield self.made(reader, number, prompt, reader.answers(), question=question)


@frozen(kw_only=True)
class Chart(Words):
    """ChartQA: relaxed accuracy, on questions of people and on augmented ones."""

    suffix: str = "Answer the question using a single number or phrase."
    measure: str = "relaxed_accuracy"
    groups: tuple[str, ...] = field(default=("type", "split", "human_or_machine"))

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for a number within 5 %, or the same text."""
        return Rated(max(rules.relaxed(answer, one) for one in truth), answer)


@frozen(kw_only=True)
class Document(Words):
    """DocVQA, InfoVQA: average normalised Levenshtein similarity."""

    measure: str = "anls"
    groups: tuple[str, ...] = field(default=("answer_type",))

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """From 0.5 to 1.0, or 0.0."""
        return Rated(rules.anls(answer, truth), answer)


@frozen(kw_only=True)
class SceneText(Words):
    """TextVQA: agreement with ten people."""

    suffix: str = f"{BRIEFLY}\nGive the final answer directly without any explanation."

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """The mean over people."""
        return Rated(rules.vqa_accuracy(answer, truth), rules.vqa_text(answer))


@frozen(kw_only=True)
class Ocr(Words):
    """OCRBench: a truth stands in the answer. The figures are shares of the kinds; 1000 questions give the score."""

    suffix: str = "Answer this question based on the text in the image directly."
    groups: tuple[str, ...] = field(default=("question_type", "category"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row; what asks to write something out is asked as it is."""
        question = reader.text("question").strip()
        kinds = {str(reader.get(name)) for name in ("dataset", "category", "question_type")}
        formula = bool(kinds & {"HME100k", "Handwritten Mathematical Expression Recognition"})
        given = "write out" in question or "using the text in the image directly" in question
        prompt = question if given else f"{question}\n{self.suffix}"
        truth = reader.answers("answer", "answers")
        yield self.made(reader, number, prompt, truth, question=question, facts={"formula": formula})

    def cut(self, said: str) -> str:
        """After thinking and in `<answer>` alone: what was read may be of any form."""
        text = after_thinking(said)
        tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        return str(tagged[-1] if tagged else text).strip()

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where a truth stands in the answer."""
        return Rated(rules.ocr_contains(answer, truth, formula=facts["formula"]), answer)


@frozen(kw_only=True)
class Multilingual(Words):
    """MTVQA: questions in nine languages; data sets keep several of one picture in a row."""

    suffix: str = ""
    groups: tuple[str, ...] = field(default=("category", "lang"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row, or those of `qa_pairs`."""
        if not reader.has("qa_pairs"):
            yield from super().items(reader, number, think=think)
            return
        for place, pair in enumerate(plain_list(reader.need("qa_pairs"))):
            if not isinstance(pair, Mapping) or not str(pair.get("answer", "")).strip():
                raise reader.wrong("has a pair without an answer", f"pair {place + 1}")
            question = str(pair.get("question", "")).strip()
            item = self.made(reader, number, question, [str(pair["answer"]).strip()], question=question)
            yield Item(
                key=f"{item.key}_{place}", parts=item.parts, truth=item.truth, facts=item.facts, question=question,
                cluster=item.key,
            )  # fmt: skip

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where the truth stands in the answer."""
        return Rated(max(rules.contains(answer, one) for one in truth), answer)


@frozen(kw_only=True)
class Description(Task):
    """What a screen shows, in free words: ROUGE-L against the true description.

    How AndesVL scored descriptions is not published, so these scores compare with one another only.
    """

    instruction: str = "请描述这个页面。"
    measure: str = "rouge-l"
    groups: tuple[str, ...] = field(default=("platform", "kind", "size", "group"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One screen a row; its own instruction is taken."""
        asked = str(reader.get("instruction", "question") or self.instruction)
        yield self.made(reader, number, asked, reader.text("text", "description", "answer"))

    def cut(self, said: str) -> str:
        """All that follows the thinking: a description is no short answer."""
        return after_thinking(said).strip()

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """From 0.0 to 1.0."""
        return Rated(rules.rouge_l(answer, truth), answer)
