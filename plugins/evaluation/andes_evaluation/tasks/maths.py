"""Mathematics: MathVista, MathVerse, MathVision, DynaMath."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from andes_evaluation.fields import LETTERS, Reader, plain_list
from andes_evaluation.items import Answered, Item, Rated
from andes_evaluation.rules import choice
from andes_evaluation.rules import maths as rules

from .base import LONG, Sums, Task, ratio
from .choice import DIRECTLY
from .text import BRIEFLY


@frozen(kw_only=True)
class Mathematics(Task):
    """A problem with a letter, a number or an expression as its truth. Thinking models sample."""

    max_tokens: int = LONG
    penalty: float = 1.0
    groups: tuple[str, ...] = field(default=("category", "subject", "level", "problem_version", "task", "split"))
    of_choices: str = DIRECTLY
    of_others: str = BRIEFLY

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One problem a row. Options stand in fields of their own, or in the question after `Choices:`."""
        question, options = reader.text("question"), self.options(reader)
        truth = reader.text("answer").strip()
        if options and len(truth) > 1 and truth in options.values():
            truth = next(letter for letter, text in options.items() if text == truth)
        suffix = self.of_choices if options or "Choices:" in question else self.of_others
        prompt = f"{self.written(question)}\n{suffix}"
        yield self.made(reader, number, prompt, truth, facts={"options": options}, question=question)

    def options(self, reader: Reader) -> dict[str, str]:
        """Options by letter; none for an open problem."""
        return reader.options()

    def written(self, question: str) -> str:
        """The question as AndesVL's evaluation asks it: options with full stops, a context for a hint."""
        question = question.replace("Choices:", "Options:").replace("Hint:", "Context:")
        return re.sub(r"\(([A-F])\)", r"\1.", question)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for the right letter, or for a number or an expression that equals the truth."""
        letters = facts["options"] or (LETTERS[:8] if truth in LETTERS else ())
        if letters and truth in LETTERS:
            letter = choice.ranked_letter(answer, list(letters))
            return Rated(float(letter == truth), letter or None)
        return Rated(rules.same_mathematics(answer, truth), answer)


@frozen(kw_only=True)
class Vista(Mathematics):
    """MathVista: choices, whole numbers, numbers of a precision, lists. No model extracts the answer: the cut does."""

    groups: tuple[str, ...] = field(default=("task", "category", "question_type"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One problem a row, with its form."""
        listed = reader.get("choices")
        choices = [str(one) for one in plain_list(listed)] if listed is not None else []
        precision = reader.get("precision")
        facts = {"choices": choices, "type": str(reader.get("answer_type") or "text"),
                 "precision": int(float(precision)) if precision is not None else 0}  # fmt: skip
        question = reader.text("query", "question")
        suffix = self.of_choices if choices else self.of_others
        truth = reader.text("answer").strip()
        prompt = f"{self.written(question)}\n{suffix}"
        yield self.made(reader, number, prompt, truth, facts=facts, question=reader.text("question"))

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where the answer, in the form of the truth, is the truth."""
        said = rules.as_mathvista(answer, facts["choices"], facts["type"], facts["precision"]) if answer else None
        return Rated(float(said is not None and said.strip() == truth), said)


@frozen(kw_only=True)
class Vision(Mathematics):
    """MathVision: reasoning is asked for."""

    of_choices: str = (
        "Please show step-by-step reasoning, and answer the question with the option's letter from the given choices "
        "directly."
    )
    of_others: str = "Please show step-by-step reasoning, and answer the question with a number directly."

    def options(self, reader: Reader) -> dict[str, str]:
        """An empty list is an open problem."""
        return {} if not plain_list(reader.get("options", "choices") or []) else reader.options()

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One problem a row; options that the question does not hold are written below it."""
        options = self.options(reader)
        for item in super().items(reader, number, think=think):
            if not options or "Choices:" in item.question or "Options:" in item.question:
                yield item
                continue
            lines = [item.question, "Options:", *(f"{c}. {text}" for c, text in options.items()), self.of_choices]
            yield self.made(
                reader, number, "\n".join(lines), item.truth, facts=dict(item.facts), question=item.question
            )


@frozen(kw_only=True)
class Dyna(Mathematics):
    """DynaMath (arXiv 2411.00836): variants of one problem. The second figure counts it right if all variants are."""

    scale: float = 1.0
    groups: tuple[str, ...] = field(default=("subject", "knowledge_level"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One variant a row, in a cluster with the others of its problem."""
        kind = reader.text("answer_type")
        last = (
            "the correct option’s letter" if kind == "multiple choice"
            else "the result as a floating-point number" if kind == "float" else "the result"
        )  # fmt: skip
        question = reader.text("question")
        prompt = f"## Question\n {question}\n## Answer Instruction\nSolve step by step, and conclude with 'the answer "
        prompt += f"is' followed by {last}."
        truth = reader.text("answer", "ground_truth").strip()
        item = self.made(reader, number, prompt, truth, facts={"type": kind}, question=question)
        yield item.placed(reader.get("qid", "id") or item.key)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """A number within 0.001, a letter, or a text that stands in the truth."""
        if facts["type"] == "float":
            return Rated(rules.close_number(answer, float(truth), 0.001), answer)
        if facts["type"] == "multiple choice":
            letter = choice.ranked_letter(answer, "ABCDE")
            return Rated(float(letter == truth.upper()), letter or None)
        return Rated(float(bool(answer) and answer.lower() in truth.lower()), answer)

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """One problem with its variants."""
        worst = min(one["score"] for one in cluster)
        return {**super().tally(cluster), "worst": worst, "problems": 1.0}

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """The mean over variants, then the worst case."""
        found = super().figures(sums)
        first = {self.measure: found.pop(self.measure), "worst case": ratio(sums["worst"], sums["problems"])}
        return {**first, **found}
