"""Answers that another model judges: MM-Vet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from andes_verifiers.answers import after_thinking
from attrs import field, frozen

from andes_evaluation.fields import Reader
from andes_evaluation.items import Item, Rated
from andes_sdk.errors import InputError

from .base import LONG, Task


class Judge(Protocol):
    """Whoever answers a judge's prompt."""

    def ask(self, prompt: str) -> str:
        """One prompt -> the reply's text."""


PROMPT = """\
You grade an answer to a question about a picture that you cannot see. Compare it with the ground truth.
In the ground truth, <AND> means that all parts are needed, and <OR> that one of them is enough.
Reply with one number from 0.0 (nothing is right) to 1.0 (everything that is needed is there), in steps of 0.1.

Question: What is x in the equation?
Ground truth: -1 <AND> -5
Answer: x = -5
Score: 0.5

Question: What is x in the equation?
Ground truth: -1 <AND> -5
Answer: x = -1 or x = -5
Score: 1.0

Question: {question}
Ground truth: {truth}
Answer: {answer}
Score:"""


@frozen(kw_only=True)
class Vet(Task):
    """MM-Vet (arXiv 2308.02490): open answers with a score from 0 to 1, by a judge behind an OpenAI-compatible server.

    The judge's examples are few and its words ours. So scores compare with one another, and not with those that GPT-4
    gave with the published examples.
    """

    needs_judge: ClassVar[bool] = True

    measure: str = "score"
    max_tokens: int = LONG
    suffix: str = "Provide a step-by-step solution to the problem carefully. Conclude with 'The answer is ...'"
    groups: tuple[str, ...] = field(default=("category", "capability"))
    judge: Judge | None = None

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One question a row."""
        question = reader.text("question")
        truth = reader.text("answer")
        prompt = f"{question}\n{self.suffix}"
        yield self.made(reader, number, prompt, truth, facts={"question": question}, question=question)

    def cut(self, said: str) -> str:
        """After thinking: the judge reads all of it."""
        return after_thinking(said).strip()

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """The judge's number; an empty answer scores 0.0 without being shown to it.

        Raises:
            InputError: no judge, or one whose reply is no number from 0 to 1.
        """
        if self.judge is None:
            raise InputError(
                "this task needs a judge", who=self.name, fix="give --judge http://…/v1 --judge-model NAME"
            )
        if not answer:
            return Rated(0.0, "")
        reply = self.judge.ask(PROMPT.format(question=facts["question"], truth=truth, answer=answer))
        try:
            score = float(reply.strip().split()[0].rstrip(".,"))
        except (ValueError, IndexError):
            score = -1.0
        if not 0.0 <= score <= 1.0:
            raise InputError("the judge gave no score", who=self.name, why=f"it said {reply[:80]!r}", fix="try another")
        return Rated(score, answer)
