"""Drafter `block`: a head guesses several tokens in one pass, on the features of the model's inner layers.

Each conversation has the head's keys and values of its own, of at most `WINDOW` rows that the model read last. What
runs the head is `running`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import Factory, define, evolve, field, frozen
from torch import Tensor

from .block import Block
from .drafter import Guess
from .head_drafter import UNLIKELY, WINDOW, shortened
from .running import Runners, runners

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Inputs, Rows, Session


@define(eq=False)
class Read:
    """What the model read in one conversation.

    Attributes:
        runner, seen: what runs the head, and keys and values it made. position: where the next row stands.
        todo: features (n, taps, D) that have no keys yet. waiting: how many they are.
    """

    runners: Runners
    runner: Any
    seen: Any
    position: int = 0
    todo: list[Tensor] = field(factory=list)
    waiting: int = 0

    def join(self, session: Session, inputs: Inputs) -> None:
        """The session tells what else may run the head."""
        if not len(self.seen):
            self.runner = self.runners.of(getattr(session, "compiled", None))
            self.seen = self.runner.open()

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, with their features."""
        # a copy, so that the other rows of the pass need not live on
        self.todo.append(rows.features[-WINDOW:].to("cpu", torch.float32, copy=True))
        self.position += len(rows.features)
        self.waiting += len(self.todo[-1])
        while self.waiting - (first := len(self.todo[0])) >= WINDOW:  # nobody will see what stands before
            self.waiting -= first
            del self.todo[0]

    @property
    def unread(self) -> int:
        """Rows that are read before the next guess, and one."""
        return 1 + self.waiting

    def fork(self) -> Read:
        """A copy; tensors are shared, since nothing writes into them, but for rows of a compiled head."""
        return evolve(self, seen=self.seen.fork(), todo=list(self.todo))

    def settle(self) -> None:
        """Keys and values of what was read since; the oldest beyond the window go."""
        if self.todo:
            some = torch.cat(self.todo)[-WINDOW:]
            self.todo, self.waiting = [], 0
            self.runner.note(self.seen, some, range(self.position - len(some), self.position))
            shortened(self.seen, WINDOW)


@frozen(eq=False)
class BlockDrafter:
    """Guesses a path of the head's likeliest tokens, with leaves beside it."""

    head: Block
    model: VisionLanguageModel
    width: int = 3
    name: str = "block"
    free: bool = False
    runners: Runners = field(init=False, default=Factory(lambda self: runners(self.head, self.model), takes_self=True))

    @property
    def taps(self) -> Sequence[int]:
        """Of the head."""
        return self.head.shape.taps

    @property
    def stride(self) -> int:
        """The block."""
        return self.head.shape.block

    def open(self) -> Read:
        """Nothing read."""
        return Read(self.runners, self.runners.torch, self.runners.torch.open())

    @torch.inference_mode()
    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """The block behind each last token, as far as the head trusts it."""
        found: list[list[Guess]] = [[] for _ in memories]
        for memory in memories:
            memory.settle()
        for runner in {id(m.runner): m.runner for m in memories}.values():
            mine = [n for n, memory in enumerate(memories) if memory.runner is runner]
            some = [memories[n] for n in mine]
            rows = self.head.entering(runner.embed([last[n] for n in mine]))
            normed, logits = runner.block([m.seen for m in some], [m.position for m in some], rows)
            trust = self.head.trust(normed).squeeze(-1).sigmoid()
            best, index = logits.softmax(-1).topk(min(self.width, logits.shape[-1]), dim=-1)
            each = zip(mine, self.head.tokens[index].tolist(), best.tolist(), trust.tolist(), strict=True)
            for n, tokens, shares, trusts in each:
                found[n] = _path(tokens, shares, trusts, min(depth, self.stride))
        return found


def _path(
    tokens: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], trusts: Sequence[float], depth: int
) -> list[Guess]:
    """Of each place the tokens and the head's chances for them, and its trust in the first -> guesses.

    Where the first is wrong, the others share what is left as the head's chances have it.
    """
    found: list[Guess] = []
    parent, before = -1, 1.0
    for some, own, trust in zip(tokens[:depth], shares, trusts, strict=False):
        first = len(found)
        found.append(Guess(some[0], parent, before * trust))
        left = before * (1.0 - trust) / max(1.0 - own[0], 1e-6)
        found += [Guess(t, parent, min(left * p, before)) for t, p in zip(some[1:], own[1:], strict=True)]
        parent, before = first, before * trust
        if before < UNLIKELY:
            break
    return found
