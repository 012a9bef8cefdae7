"""Texts that hide facts, and what is asked of them: plain sentences with codes, and four tasks of a small model.

`codes` is for any model: "The code of the blue kite is 4817." among sentences. `keys`, `values`, `tracking` and
`common` are those of `examples/retrieval/tasks.py`, for the model that is trained on them: facts among other sentences.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from andes_sdk import Pipeline

OWN = Path(__file__).resolve().parents[1] / "examples" / "retrieval"
"""The small model's folder."""

sys.path.insert(0, str(OWN))
from tasks import TASKS, sample, text_of  # noqa: E402

THINGS = ("kite", "lamp", "boat", "clock", "garden", "ladder", "violin", "tower", "basket", "bridge", "mirror", "wagon")
COLOURS = ("blue", "red", "green", "yellow", "white", "black", "silver", "brown", "orange", "purple", "pink", "golden")
FILLER = (
    "The grass behind the house is long and wet.", "People walk along the river in the evening.",
    "A train leaves the small station every hour.", "The baker opens the shop before the sun comes up.",
    "Rain fell for three days and then the sky was clear.", "Children play in the yard of the old school.",
    "The road goes over the hill and down to the sea.", "My neighbour reads a book in front of the fire.",
    "There is a market on the square every Saturday.", "The cat sleeps on the chair near the window.",
    "In winter the lake is covered with ice.", "The farmer has two horses and many sheep.",
    "Somebody left an umbrella on the bench.", "The train was late and nobody was surprised.",
    "A cook needs sharp knives and a good stove.", "The letter arrived a week after it was sent.",
)  # fmt: skip
MOST = {"codes": len(THINGS)}
MOST_OWN = 48
"""Facts of a text, at most: codes name a thing each; the small model learned from so many."""
ASKED = 8
"""Questions about a text of the small model, at most."""


@frozen
class Question:
    """One question.

    Attributes:
        added: to the user's turn, behind the text. begun: how the answer begins. answer: how it must go on.
    """

    added: str
    begun: str
    answer: str


@frozen
class Case:
    """A text and what is asked of it."""

    text: str
    questions: tuple[Question, ...]

    def split(self, pipe: Pipeline, question: Question) -> tuple[list[int], list[int]]:
        """Tokens of the text with what stands before it, and those of a question and of the beginning of its answer."""
        another = self.text if question.added else f"{self.text}?"  # what both have in common is the text
        turns = ([{"role": "user", "content": text}] for text in (self.text + question.added, another))
        whole, other = (pipe.prepare(turn).ids.tolist() for turn in turns)
        same = next(n for n, (a, b) in enumerate(zip(whole, other, strict=False)) if a != b)
        return whole[:same], [*whole[same:], *pipe.tokenizer.encode(question.begun)]


def codes(rng: random.Random, size: int, keys: int) -> Case:
    """A text of about so many words."""
    names = [f"{c} {t}" for c, t in zip(rng.sample(COLOURS, keys), rng.sample(THINGS, keys), strict=True)]
    facts = tuple((name, str(rng.randrange(1000, 10_000))) for name in names)
    sentences: list[str] = []
    while sum(len(s.split()) for s in sentences) < size:
        sentences.append(rng.choice(FILLER))
    for name, number in facts:
        sentences.insert(rng.randrange(len(sentences) * 9 // 10), f"The code of the {name} is {number}.")
    questions = (
        Question(f"\nWhat is the code of the {name}?", f"The code of the {name} is", f" {number}")
        for name, number in facts
    )
    return Case("Remember the codes in this text.\n" + " ".join(sentences), tuple(questions))


def of_task(task: str) -> Callable[[random.Random, int, int], Case]:
    """What makes texts of a task of the small model."""

    def made(rng: random.Random, size: int, facts: int) -> Case:
        said, asked = sample(rng, task, facts)
        some = rng.sample(asked, min(ASKED, len(asked)))
        questions = (Question("", f"so: {before}", f" {answer}") for before, answer in some)
        return Case(text_of(rng, task, said, size // 8), tuple(questions))

    return made


MAKERS: dict[str, Callable[[random.Random, int, int], Case]] = {"codes": codes, **{t: of_task(t) for t in TASKS}}
"""Task -> what makes a text of about so many words, with so many facts."""


def fitting(pipe: Pipeline, rng: random.Random, tokens: int, facts: int, task: str = "codes") -> Case:
    """A text whose tokens, with the template, are about as many as wanted."""
    state, words = rng.getstate(), tokens // 2
    for _ in range(3):
        rng.setstate(state)
        case = MAKERS[task](rng, words, facts)
        words = int(words * tokens / len(case.split(pipe, case.questions[0])[0]))
    return case
