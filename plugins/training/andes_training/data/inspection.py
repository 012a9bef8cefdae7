"""What is wrong with data files, before anything trains on them: `andes data check`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.messages import parse_messages
from andes_training.data.bad import BadSample
from andes_training.data.rows import RowMaker, Thinking, check_thinking, conversations_of, read_conversations
from andes_training.reading import in_order

if TYPE_CHECKING:
    from andes_training.data.samples import Sample, Samples

PLAIN_THINKING = Thinking("<think>", ())
"""What begins a reasoning answer where no tokenizer is at hand."""


@frozen
class Problem:
    """A sample that cannot be used.

    Attributes:
        where: `file:line`.
        reason: one of `andes_training.data.bad.REASONS`.
    """

    where: str
    reason: str
    what: str
    why: str
    fix: str


def whole(samples: Samples) -> Samples:
    """The same files, each sample once, with all its conversations and without random changes."""
    plain: dict[str, Any] = {"questions": 0, "repeat": 1, "flip": False, "shift": 0.0, "rotate": 0.0}
    return evolve(samples, sources=tuple(evolve(s, recipe=evolve(s.recipe, **plain)) for s in samples.sources))


def problems(samples: Samples, maker: RowMaker | None = None, workers: int = 1) -> Iterator[Problem]:
    """Every sample that training would refuse, in the order of the files.

    Args:
        maker: the stage's; without one lengths are not checked, since they need its tokenizer and resolution.
    """
    samples = whole(samples)

    def look(index: int) -> Problem | None:
        try:
            if maker is not None:
                maker.row(samples[index], random.Random(0))
            else:
                inspect(samples[index])
        except BadSample as error:
            return Problem(error.who, error.reason, error.what, error.why, error.fix)
        return None

    yield from (p for p in in_order(look, range(len(samples)), workers) if p is not None)


def inspect(sample: Sample) -> list[list[Any]]:
    """Check a sample as far as that needs no model -> its conversations, pictures loaded.

    Raises:
        BadSample: it cannot be used.
    """
    filled = read_conversations(sample, conversations_of, load_image, random.Random(0))
    check_thinking(sample, filled, PLAIN_THINKING)
    try:
        turns = [parse_messages(conversation)[0] for conversation in filled]
    except InputError as error:
        raise BadSample(
            error.what, reason="message", who=sample.where, why=f"{error.who}: {error.why}", fix=error.fix
        ) from error
    if not any(turn.role == "assistant" for conversation in turns for turn in conversation):
        raise BadSample(
            "has no assistant text to learn from",
            reason="unsupervised",
            who=sample.where,
            fix="add an assistant message",
        )
    return filled
