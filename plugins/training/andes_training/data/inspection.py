"""What is wrong with data files, before anything trains on them: `andes data check`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen
from PIL import Image

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.messages import parse_messages
from andes_sdk.types import Slot, Turn
from andes_training.data.bad import BadSample
from andes_training.data.rows import (
    APART,
    DIFFERENT,
    RowMaker,
    Thinking,
    check_answered,
    check_thinking,
    conversations_of,
    read_conversations,
)
from andes_training.data.samples import whole
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


def problems(samples: Samples, maker: RowMaker | None = None, workers: int = 1) -> Iterator[Problem]:
    """Every sample that training would refuse, in the order of the files.

    Args:
        maker: the stage's; without one lengths are not checked, since they need its tokenizer and resolution.
    """
    samples = whole(samples)

    def look(index: int) -> Problem | None:
        try:
            if maker is None:
                inspect(samples[index])
            elif maker.answered:
                maker.row(samples[index], random.Random(0))
            elif maker.check is not None:
                maker.check(samples[index])
            else:
                inspect_prompt(samples[index], tuple(maker.processor.modalities))
        except BadSample as error:
            return Problem(error.who, error.reason, error.what, error.why, error.fix)
        return None

    yield from (p for p in in_order(look, range(len(samples)), workers) if p is not None)


def inspect_prompt(sample: Sample, kinds: Sequence[str] = ("image",)) -> None:
    """Check a line of a stage that makes its own batches, whose form nobody else knows: messages, if it has any.

    Raises:
        BadSample: it cannot be used.
    """
    if sample.entry.keys() & {"messages", "conversations"}:
        _parsed(sample, read_conversations(sample, conversations_of, load_image, random.Random(0)), kinds)


def inspect(sample: Sample) -> list[list[Any]]:
    """Check a sample as far as that needs no model -> its conversations, pictures loaded.

    Raises:
        BadSample: it cannot be used.
    """
    filled = read_conversations(sample, conversations_of, load_image, random.Random(0))
    check_thinking(sample, filled, PLAIN_THINKING)
    turns, shown = zip(*_parsed(sample, filled), strict=True)
    check_answered(sample, filled)
    if len(filled) > 1:
        _check_shared(sample, turns, shown)
    return filled


def _parsed(sample: Sample, filled: Sequence[Sequence[Any]], kinds: Sequence[str] = ("image",)) -> list[Any]:
    """Turns and items of each conversation. Raises BadSample: it breaks the rules for messages."""
    try:
        return [parse_messages(conversation, kinds) for conversation in filled]
    except InputError as error:
        raise BadSample(
            error.what, reason="message", who=sample.where, why=f"{error.who}: {error.why}", fix=error.fix
        ) from error


def _check_shared(sample: Sample, turns: Sequence[Sequence[Turn]], shown: Sequence[Mapping[str, Any]]) -> None:
    """Refuse conversations that show different pictures, or that differ before their last one."""
    if any(_contents(one) != _contents(shown[0]) for one in shown[1:]):
        what, why, fix = DIFFERENT
    elif any(_head(one) != _head(turns[0]) or any(role == "assistant" for role, _ in _head(one)) for one in turns):
        what, why, fix = APART
    else:
        return
    raise BadSample(what, reason="picture", who=sample.where, why=why, fix=fix)


def _contents(items: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Pictures as pixels, other items as they are."""
    return {
        kind: [(i.size, i.tobytes()) if isinstance(i, Image.Image) else i for i in some] for kind, some in items.items()
    }


def _head(turns: Sequence[Turn]) -> list[tuple[str, str | Slot]]:
    """Role and part, up to the last that is no text."""
    parts = [(turn.role, part) for turn in turns for part in turn.parts]
    last = max((i for i, (_, part) in enumerate(parts) if not isinstance(part, str)), default=-1)
    return parts[: last + 1]
