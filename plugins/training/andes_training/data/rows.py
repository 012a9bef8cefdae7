"""One sample to one row of tensors, or what is wrong with it.

A sample is `{"messages": [...]}`, or `{"conversations": [[...], ...]}` for several about the same pictures. `"think"`
says whether its answer reasons first; without it the text decides: an answer that begins with `<think>` does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import Factory, evolve, field, frozen

from andes_sdk.errors import AndesError, InputError, TrainingError
from andes_sdk.inputs.images import load_image
from andes_sdk.types import Turn
from andes_training.data.bad import BadSample
from andes_training.data.boxes import find_boxes
from andes_training.data.pictures import Pictures, augmentation
from andes_training.packing import Row, make_row, patches_in

if TYPE_CHECKING:
    from andes_sdk.inputs.processor import Processor
    from andes_sdk.types import Inputs, Tokenizer
    from andes_training.data.samples import Sample

Conversations = Callable[[Mapping[str, Any]], Sequence[Sequence[Any]]]
"""One data line -> conversations about the same pictures."""


def conversations_of(entry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """The usual shape of a line: `{"messages": [...]}` or `{"conversations": [[...], ...]}`.

    Raises:
        TrainingError: it is neither.
    """
    many = entry.get("conversations")
    if many is None and "messages" in entry:
        many = [entry["messages"]]
    if isinstance(many, list) and many and all(isinstance(m, list) and m for m in many):
        return many
    raise TrainingError("is not a sample", fix='write {"messages": [...]} or {"conversations": [[...], ...]}')


DIFFERENT = "its conversations have different pictures", "", "write one line per picture"
APART = (
    "its conversations differ before their last picture",
    "pictures are read once for all conversations of a line, before what they differ in and before any answer",
    "put the pictures first, or write one line per conversation",
)
UNSUPERVISED = "has no assistant text to learn from", "", "add an assistant message with text"
"""What is wrong, why, and what to do."""


@frozen
class Thinking:
    """What stands before an answer when reasoning is asked for: as text and as ids; empty for a model without it."""

    text: str
    ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Thinking:
        """Found by comparing the two prompts that the chat template writes; a template may refuse to think."""
        turns = [Turn("user", ("?",))]
        without = tokenizer.render(turns, think=False, generate=True)
        try:
            with_it = tokenizer.render(turns, think=True, generate=True)
        except InputError:
            return cls("", ())
        return cls(with_it.prefix, with_it.ids[len(without.ids) :])


@frozen
class RowMaker:
    """Makes one row of a sample: the same in training, in `andes data check` and in `andes data stats`.

    Attributes:
        processor: messages and pictures to tensors, with the stage's resolution.
        conversations: the stage's way from a data line to conversations.
        max_tokens, max_patches: the most that a sample may have; 0 for no limit but the model's positions.
        load: source of a picture -> picture.
        answered: whether a line is known to be conversations that end in an answer, as training learns from them.
        check: what the stage itself asks of a line that is not known to be answered; None: nothing.
        thinking: what the chat template writes before an answer that reasons.
    """

    processor: Processor
    conversations: Conversations = conversations_of
    max_tokens: int = 0
    max_patches: int = 0
    load: Callable[[Any], Any] = load_image
    answered: bool = True
    check: Callable[[Sample], object] | None = None
    thinking: Thinking = field(
        init=False, default=Factory(lambda self: Thinking.of(self.processor.tokenizer), takes_self=True)
    )

    def row(self, sample: Sample, rng: random.Random) -> Row:
        """A sample as tensors; `rng` chooses among its conversations and changes its pictures.

        Raises:
            BadSample: it cannot be used; says why, and where it stands.
        """
        filled = read_conversations(sample, self.conversations, self.load, rng)
        check_thinking(sample, filled, self.thinking)
        # the limit is checked below, where it can be told from other problems
        processor = evolve(self.processor, limit=1 << 30)
        try:
            prepared = [_unprompted(processor.prepare(c, generate=False), self.thinking) for c in filled]
        except InputError as error:
            raise _bad(sample, "message", error.what, f"{error.who}: {error.why}".strip(": "), error.fix) from error
        check_answered(sample, filled)
        if any(not _same_media(p, prepared[0]) for p in prepared):
            raise _bad(sample, "picture", *DIFFERENT)
        if not any(bool(p.supervised.any()) for p in prepared if p.supervised is not None):
            raise _bad(sample, "unsupervised", *UNSUPERVISED)
        row = make_row(prepared)
        for kind, media in row.media.items():
            if int((row.ids == processor.tokenizer.placeholder(kind)).sum()) != sum(media.rows):
                raise _bad(sample, "picture", *APART)
        self.check_size(sample, max(len(p.ids) for p in prepared), len(row.ids), patches_in(row.media))
        return row

    def check_size(self, sample: Sample, longest: int, rows: int, patches: int) -> None:
        """Refuse a sample whose longest conversation, rows or patches are too many.

        Raises:
            BadSample: they are.
        """
        if longest > self.processor.limit:
            why, fix = f"{longest} tokens, the model takes {self.processor.limit}", "shorten it"
            raise _bad(sample, "tokens", "is longer than the model's positions", why, fix)
        if 0 < self.max_tokens < rows:
            why, fix = f"{rows} tokens, max_tokens is {self.max_tokens}", "raise max_tokens, or shorten it"
            raise _bad(sample, "tokens", "is too long for the stage", why, fix)
        if 0 < self.max_patches < patches:
            why, fix = (
                f"{patches} patches, max_patches is {self.max_patches}",
                "raise max_patches, or lower image.max_size",
            )
            raise _bad(sample, "patches", "has too many patches for the stage", why, fix)


def read_conversations(
    sample: Sample, conversations: Conversations, load: Callable[[Any], Any], rng: random.Random
) -> list[list[Any]]:
    """A sample's conversations with their pictures in place, their boxes checked.

    Raises:
        BadSample: not the shape that the stage reads, a picture that cannot be had, a box outside its picture.
    """
    try:
        chosen = list(conversations(sample.entry))
    except BadSample:
        raise
    except AndesError as error:
        raise _bad(sample, "shape", error.what, error.why, error.fix) from error
    if not chosen or not all(chosen):
        raise _bad(sample, "shape", "has an empty conversation", "", "write one message at least")
    if 0 < sample.source.questions < len(chosen):
        chosen = rng.sample(chosen, sample.source.questions)
    pictures = Pictures(sample, load, augmentation(sample.source, rng))
    filled = [pictures.fill(conversation) for conversation in chosen]
    for text in (text for conversation in filled for message in conversation for text in texts_of(message)):
        try:
            find_boxes(text)
        except BadSample as error:
            raise _bad(sample, error.reason, error.what, error.why, error.fix) from None
    return filled


def texts_of(message: Any) -> Iterator[str]:
    """The texts of a message, whatever else is wrong with it."""
    content = message.get("content") if isinstance(message, Mapping) else None
    parts = content if isinstance(content, list) else [{"text": content}]
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if isinstance(text, str):
            yield text


def check_answered(sample: Sample, conversations: Sequence[Sequence[Any]]) -> None:
    """Refuse a sample in which the assistant says nothing.

    Raises:
        BadSample: it does not.
    """
    spoken = (m for one in conversations for m in one if isinstance(m, Mapping) and m.get("role") == "assistant")
    if not any(text.strip() for message in spoken for text in texts_of(message)):
        raise _bad(sample, "unsupervised", *UNSUPERVISED)


def check_thinking(sample: Sample, conversations: Sequence[Sequence[Any]], thinking: Thinking) -> None:
    """Refuse a sample whose `think` and whose last answer say different things.

    Raises:
        BadSample: they do, or `think` is no truth value.
    """
    wanted = sample.entry.get("think")
    if wanted is not None and not isinstance(wanted, bool):
        raise _bad(sample, "think", f"`think` is {wanted!r}", "", "write true or false, or leave it out")
    if wanted and not thinking.text:
        raise _bad(sample, "think", "asks to think", "the model has no such mode", "use a language model that has")
    for conversation in conversations if thinking.text else ():
        text = "".join(texts_of(conversation[-1]))
        reasons = text.startswith(thinking.text)
        if not reasons and text.lstrip().startswith(thinking.text):
            raise _bad(sample, "think", f"there is space before {thinking.text}", "", "remove it: the prompt has none")
        if wanted is not None and wanted != reasons:
            why = f"the answer begins {'with' if reasons else 'without'} {thinking.text}"
            raise _bad(sample, "think", f"`think` is {str(wanted).lower()}", why, "make them agree")


def _unprompted(inputs: Inputs, thinking: Thinking) -> Inputs:
    """No loss on what the prompt of a reasoning answer already holds.

    So a model learns to reason where `<think>` was prefilled and to answer directly where it was not.
    """
    n = len(thinking.ids)
    if not n or inputs.supervised is None:
        return inputs
    supervised = inputs.supervised.clone()
    begins = torch.cat([supervised[:1], supervised[1:] & ~supervised[:-1]])
    for start in begins.nonzero()[:, 0].tolist():
        if tuple(inputs.ids[start : start + n].tolist()) == thinking.ids:
            supervised[start : start + n] = False
    return evolve(inputs, supervised=supervised)


def _same_media(one: Inputs, other: Inputs) -> bool:
    """Whether two conversations show the same, to the bit."""
    if one.media.keys() != other.media.keys():
        return False
    pairs = [(media, other.media[kind]) for kind, media in one.media.items()]
    return all(a.sizes == b.sizes and torch.equal(a.data, b.data) for a, b in pairs)


def _bad(sample: Sample, reason: str, what: str, why: str = "", fix: str = "") -> BadSample:
    return BadSample(what, reason=reason, who=sample.where, why=why, fix=fix)
