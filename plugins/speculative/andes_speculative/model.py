"""Drafter `model`: a smaller model of the same vocabulary goes ahead, greedily (arXiv 2211.17192).

Each conversation has a session of the smaller model. What the drafter said ahead stays there as uncommitted rows. Once
the larger model has decided, the rows that came true are committed and the others dropped. One pass of the smaller
model serves all conversations.

A smaller model whose encoder takes the same patches sees the pictures of a prompt. For any other, their rows are the
placeholder's. Left out: trees, and sampling ahead, which only changes what is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, evolve, field, frozen

from andes_sdk.errors import AndesError, ConfigError, SessionError
from andes_sdk.types import Work

from .drafter import Guess

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Inputs, Rows, Session, Tokenizer, VisionSpec

UNLIKELY = 0.05
"""A path less likely than this, by the smaller model's own word, is not followed further."""


@define(eq=False)
class Ahead:
    """One conversation of the smaller model.

    Attributes:
        session: its rows. said: tokens of the uncommitted ones, the first `known` of which were read since.
        todo: tokens that were read and have no rows yet.
        prompt: with pictures, to be read first; its first `skip` tokens are still to be read by `read`.
        silent: why it guesses no more, or "".
    """

    pipeline: Pipeline
    sees: bool
    session: Any
    said: list[int] = field(factory=list)
    known: int = 0
    todo: list[int] = field(factory=list)
    prompt: Inputs | None = None
    skip: int = 0
    silent: str = ""

    def join(self, session: Session, inputs: Inputs) -> None:
        """A prompt with pictures is read as it is, where the smaller model sees them."""
        fresh = not (self.session.length or self.said or self.todo or self.prompt)
        if fresh and inputs.media and self.sees and set(inputs.media) == {"image"}:
            self.prompt, self.skip = inputs, len(inputs.ids)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Tokens that were committed: rows that said so stay, all behind the first that did not are dropped."""
        if self.skip:
            skipped = min(self.skip, len(tokens))
            self.skip -= skipped
            tokens = tokens[skipped:]
        for token in tokens:
            if not self.todo and self.known < len(self.said) and self.said[self.known] == token:
                self.known += 1
            else:
                self.todo.append(token)
        if self.todo:
            self._settle()

    def _settle(self) -> None:
        """Commit what is known, drop the rest."""
        if self.said:
            self.session.commit(range(self.known))
        self.said, self.known = [], 0

    def begin(self) -> None:
        """Everything that only one conversation can do: the prompt with its pictures, what is left over."""
        if self.said:
            self._settle()
        if self.prompt is not None:
            self.session.prefill(self.prompt)
            self.prompt = None

    def fork(self) -> Ahead:
        """A copy."""
        self._settle()
        return evolve(self, session=self.session.fork(), todo=list(self.todo), said=[])


@frozen(eq=False)
class ModelDrafter:
    """Guesses what a smaller pipeline would say.

    Attributes:
        pipeline: the smaller one. vocabulary: ids of the larger model.
        sees: whether it takes the larger model's patches.
    """

    pipeline: Pipeline
    vocabulary: int
    sees: bool
    name: str = "model"
    taps: Sequence[int] = ()
    free: bool = False
    stride: int = 1

    @classmethod
    def of(cls, pipeline: Pipeline, tokenizer: Tokenizer, vision: VisionSpec) -> ModelDrafter:
        """A smaller pipeline beside a larger model.

        Raises:
            ConfigError: another vocabulary.
        """
        refuse_other_vocabulary(pipeline.tokenizer, tokenizer, str(pipeline.weights or "the draft model"))
        return cls(pipeline, tokenizer.vocab_size, same_patches(pipeline.model.vision, vision))

    def open(self) -> Ahead:
        """An empty session."""
        return Ahead(self.pipeline, self.sees, self.pipeline.session())

    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """Up to `depth` tokens that the smaller model thinks likeliest, one after another."""
        found: list[list[Guess]] = [[] for _ in memories]
        feed = {n: [*one.todo, token] for n, (one, token) in enumerate(zip(memories, last, strict=True))}
        for n, one in enumerate(memories):
            try:
                if not one.silent:
                    one.begin()
                    feed[n] = [*one.todo, last[n]]
            except AndesError as error:
                one.silent = str(error)
        for _ in range(depth):
            some = [n for n in feed if not memories[n].silent]
            best = self._step([memories[n] for n in some], [feed[n] for n in some])
            feed = {}
            for n, (token, chance) in zip(some, best, strict=True):
                if memories[n].silent:
                    continue
                before = found[n][-1].chance if found[n] else 1.0
                found[n].append(Guess(token, len(found[n]) - 1, before * chance))
                if before * chance >= UNLIKELY:
                    feed[n] = [token]
            if not feed:
                break
        return found

    def _step(self, memories: Sequence[Ahead], feed: Sequence[list[int]]) -> list[tuple[int, float]]:
        """One pass -> per conversation the likeliest token and its chance."""
        if not memories:
            return []
        work = [Work(session=m.session, tokens=t, logits=1) for m, t in zip(memories, feed, strict=True)]
        try:
            rows = self.pipeline.compiled.step(work)
        except SessionError as error:
            if len(memories) == 1:  # no positions left, say: the larger model goes on alone
                memories[0].silent = str(error)
                return [(0, 0.0)]
            return [self._step([m], [t])[0] for m, t in zip(memories, feed, strict=True)]
        best = []
        for one, tokens, computed in zip(memories, feed, rows, strict=True):
            one.said += tokens
            one.known += len(one.todo)
            one.todo = []
            scores = torch.log_softmax(computed.logits[-1, : self.vocabulary].float(), 0)
            chance, token = scores.max(0)
            best.append((int(token), float(chance.exp())))
        return best


def same_patches(one: VisionSpec, other: VisionSpec) -> bool:
    """Whether two encoders take the same patches and make as many rows of them."""
    return all(getattr(one, part) == getattr(other, part) for part in ("patch_size", "merge", "mean", "std"))


def refuse_other_vocabulary(own: Tokenizer, wanted: Tokenizer, who: str) -> None:
    """Refuse a tokenizer that gives other ids to texts.

    Compares sizes, ends, and the texts of ids: all of a small vocabulary, of a large one some thousands.

    Raises:
        ConfigError: naming the first difference.
    """
    why = ""
    for part in ("vocab_size", "eos", "pad"):
        if getattr(own, part) != getattr(wanted, part):
            why = why or f"{part} is {getattr(own, part)}, the model's {getattr(wanted, part)}"
    if not why:
        size = own.vocab_size
        for token in range(0, size, 1 + size // 8192):
            if (mine := own.decode([token])) != (other := wanted.decode([token])):
                why = f"token {token} is {mine!r}, the model's {other!r}"
                break
    if why:
        fix = "give a model of the same family, with the same tokenizer"
        raise ConfigError("the draft model has another vocabulary", who=who, why=why, fix=fix)
