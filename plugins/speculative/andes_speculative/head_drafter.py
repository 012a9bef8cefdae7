"""Drafter `eagle3`: a head goes ahead of the model on the features of its inner layers.

Each conversation has the head's own rows, at most `WINDOW` of them: the head was trained on short texts, and a guess
needs no more. One pass of the head serves all conversations. What runs it is `running`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import Factory, define, evolve, field, frozen
from torch import Tensor

from .drafter import Guess
from .eagle import Eagle3
from .running import Runners, runners

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Inputs, Rows, Session

WINDOW = 1024
"""Rows of the head that stay."""
UNLIKELY = 0.03
"""A path less likely than this is not followed."""


def shortened(seen: Any, window: int) -> None:
    """Of too many rows the last stay, somewhat fewer than there may be: forgetting copies those that stay."""
    if len(seen) > window:
        seen.keep_last(window - window // 16)


@define(eq=False)
class Features:
    """The head's rows of one conversation.

    Attributes:
        runner, seen: what runs the head, and the rows it made where the next token is known.
        position: where the next row stands.
        todo: pairs of next embedding (n, D) and features (n, taps, D) that have no rows yet. waiting: their rows.
        tail: (1, taps, D) features of the last row, whose next token nobody has read yet.
        ahead: the token that `tail` was paired with in the last guess; its row is the last of `seen`. -1: none was.
    """

    runners: Runners
    runner: Any
    seen: Any
    position: int = 0
    todo: list[tuple[Tensor, Tensor]] = field(factory=list)
    waiting: int = 0
    tail: Tensor | None = None
    ahead: int = -1

    def join(self, session: Session, inputs: Inputs) -> None:
        """The session tells what else may run the head."""
        if not len(self.seen):
            self.runner = self.runners.of(getattr(session, "compiled", None))
            self.seen = self.runner.open()

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, with their embeddings and features."""
        embeds, features = rows.embeds.float().cpu(), rows.features.float().cpu()
        if self.tail is not None:
            embeds, features = embeds, torch.cat([self.tail, features])
            if self.ahead == tokens[0]:  # its row is there already
                embeds, features = embeds[1:], features[1:]
            elif self.ahead >= 0:
                self._cut()
        else:
            embeds = embeds[1:]
        self.ahead = -1
        self.tail = features[-1:].clone()
        if len(embeds):
            # of a long prompt only what stays is worth computing
            left_out = max(0, len(embeds) - WINDOW)
            self.position += left_out
            self.todo.append((embeds[left_out:].clone(), features[left_out:-1].clone()))
            self.waiting += len(embeds) - left_out
            gap = left_out > 0
            while len(self.todo) > 1 and (left_out or self.waiting - len(self.todo[0][0]) >= WINDOW):
                first = len(self.todo.pop(0)[0])
                self.position, self.waiting, gap = self.position + first, self.waiting - first, True
            if gap:  # nobody will see what stands before it
                self.seen.cut(len(self.seen))

    @property
    def unread(self) -> int:
        """Rows of the next guess, the last token's among them."""
        return 1 + self.waiting

    def _cut(self) -> None:
        self.seen.cut(1)
        self.position -= 1

    def fork(self) -> Features:
        """A copy; tensors are shared, since nothing writes into them, but for rows of a compiled head."""
        return evolve(self, seen=self.seen.fork(), todo=list(self.todo))

    def start(self, token: int, embed: Tensor) -> tuple[Tensor, Tensor]:
        """What has no row yet, the last token's pair with it -> embeddings (n, D) and features (n, taps, D)."""
        if self.ahead >= 0:
            self._cut()
        parts = [*self.todo, (embed, self.tail)]
        self.todo, self.waiting, self.ahead = [], 0, token
        return torch.cat([e for e, _ in parts]), torch.cat([f for _, f in parts if f is not None])


@frozen(eq=False)
class HeadDrafter:
    """Guesses what a trained head says, one token after another, with leaves beside the path."""

    head: Eagle3
    model: VisionLanguageModel
    width: int = 3
    name: str = "eagle3"
    free: bool = False
    stride: int = 1
    runners: Runners = field(init=False, default=Factory(lambda self: runners(self.head, self.model), takes_self=True))

    @property
    def taps(self) -> Sequence[int]:
        """Of the head."""
        return self.head.shape.taps

    def open(self) -> Features:
        """No rows."""
        return Features(self.runners, self.runners.torch, self.runners.torch.open())

    @torch.inference_mode()
    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """The likeliest tokens, as far as the head trusts its path."""
        found: list[list[Guess]] = [[] for _ in memories]
        live = [n for n, memory in enumerate(memories) if memory.tail is not None]
        for runner in {id(memories[n].runner): memories[n].runner for n in live}.values():
            mine = [n for n in live if memories[n].runner is runner]
            self._ahead(runner, [memories[n] for n in mine], [last[n] for n in mine], depth, [found[n] for n in mine])
        return found

    def _ahead(
        self, runner: Any, some: Sequence[Features], last: Sequence[int], depth: int, found: Sequence[list[Guess]]
    ) -> None:
        pairs = [m.start(t, e) for m, t, e in zip(some, last, runner.embed(last).split(1), strict=True)]
        where = [range(m.position, m.position + len(e)) for m, (e, _) in zip(some, pairs, strict=True)]
        hidden = runner.joined(torch.cat([f for _, f in pairs]))
        rows, logits = runner.run([m.seen for m in some], where, torch.cat([e for e, _ in pairs]), hidden)
        for memory, own in zip(some, where, strict=True):
            memory.position = own.stop
            shortened(memory.seen, WINDOW)
        going, beyond = list(range(len(some))), [0] * len(some)
        for step in range(depth):
            going, picked = self._note(logits, going, found)
            if not going or step + 1 == depth:
                break
            path = [found[i][-self._leaves(found[i])].token for i in going]
            ahead = [range(some[i].position + step, some[i].position + step + 1) for i in going]
            rows, logits = runner.run([some[i].seen for i in going], ahead, runner.embed(path), rows[picked])
            for i in going:
                beyond[i] += 1
        for memory, count in zip(some, beyond, strict=True):
            memory.seen.cut(count)

    def _leaves(self, guesses: Sequence[Guess]) -> int:
        """How far from the end the token stands that the path follows: the first of the last group."""
        parent = guesses[-1].parent
        return sum(1 for g in guesses if g.parent == parent)

    def _note(self, logits: Tensor, going: Sequence[int], found: Sequence[list[Guess]]) -> tuple[list[int], list[int]]:
        """Write down the likeliest tokens after each path -> which go on, and where their rows stand."""
        chances = logits.softmax(-1)
        best, index = chances.topk(min(self.width, chances.shape[-1]), dim=-1)
        tokens, shares = self.head.tokens[index].tolist(), best.tolist()
        on, places = [], []
        for place, who in enumerate(going):
            mine = found[who]
            parent = len(mine) - self._leaves(mine) if mine else -1
            before = mine[parent].chance if mine else 1.0
            for token, chance in zip(tokens[place], shares[place], strict=True):
                mine.append(Guess(token, parent, before * chance))
            if before * shares[place][0] >= UNLIKELY:
                on.append(who)
                places.append(place)
        return on, places
