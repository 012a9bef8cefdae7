"""Drafter `eagle3`: a head goes ahead of the model on the features of its inner layers.

Each conversation has the head's own rows, at most `WINDOW` of them: the head was trained on short texts, and a guess
needs no more. One pass of the head serves all conversations; attention runs for each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from .drafter import Guess
from .eagle import Eagle3, attention

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Rows

WINDOW = 1024
"""Rows of the head that stay."""
UNLIKELY = 0.03
"""A path less likely than this is not followed."""


def embedded(model: VisionLanguageModel, tokens: Sequence[int]) -> Tensor:
    """(n, D) float32 inputs of the model."""
    ids = torch.tensor(tokens, device=model.device)
    return model.llm.embed(ids).float().cpu()


@define(eq=False)
class Features:
    """The head's rows of one conversation.

    Attributes:
        keys, values: (Hkv, n, d) of rows whose next token is known. position: where the next row stands.
        todo: pairs of next embedding (n, D) and features (n, taps, D) that have no rows yet.
        tail: (1, taps, D) features of the last row, whose next token nobody has read yet.
        ahead: the token that `tail` was paired with in the last guess; its row is the last of `keys`. -1: none was.
    """

    keys: Tensor
    values: Tensor
    position: int = 0
    todo: list[tuple[Tensor, Tensor]] = field(factory=list)
    tail: Tensor | None = None
    ahead: int = -1

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, with their embeddings and features."""
        embeds, features = rows.embeds.float().cpu(), rows.features.float().cpu()
        if self.tail is not None:
            embeds, features = embeds, torch.cat([self.tail, features])
            if self.ahead == tokens[0]:  # its row is there already
                embeds, features = embeds[1:], features[1:]
            elif self.ahead >= 0:
                self._cut(1)
        else:
            embeds = embeds[1:]
        self.ahead = -1
        self.tail = features[-1:].clone()
        if len(embeds):
            # of a long prompt only what stays is worth computing
            left_out = max(0, len(embeds) - WINDOW)
            if left_out:
                self.position += left_out + sum(len(e) for e, _ in self.todo)
                self.todo = []
                self.keys, self.values = self.keys[:, :0], self.values[:, :0]
            self.todo.append((embeds[left_out:].clone(), features[left_out:-1].clone()))

    def _cut(self, count: int) -> None:
        size = self.keys.shape[1] - count
        self.keys, self.values, self.position = self.keys[:, :size], self.values[:, :size], self.position - count

    def fork(self) -> Features:
        """A copy; tensors are shared, since nothing writes into them."""
        return Features(self.keys, self.values, self.position, list(self.todo), self.tail, self.ahead)

    def start(self, token: int, embed: Tensor) -> tuple[Tensor, Tensor]:
        """What has no row yet, the last token's pair with it -> embeddings (n, D) and features (n, taps, D)."""
        if self.ahead >= 0:
            self._cut(1)
        parts = [*self.todo, (embed, self.tail)]
        self.todo, self.ahead = [], token
        return torch.cat([e for e, _ in parts]), torch.cat([f for _, f in parts if f is not None])

    def store(self, k: Tensor, v: Tensor) -> None:
        """New rows; the oldest beyond the window go."""
        self.keys = torch.cat([self.keys, k], dim=1)[:, -WINDOW:]
        self.values = torch.cat([self.values, v], dim=1)[:, -WINDOW:]
        self.position += k.shape[1]


@frozen(eq=False)
class HeadDrafter:
    """Guesses what a trained head says, one token after another, with leaves beside the path."""

    head: Eagle3
    model: VisionLanguageModel
    width: int = 3
    name: str = "eagle3"
    free: bool = False
    stride: int = 1

    @property
    def taps(self) -> Sequence[int]:
        """Of the head."""
        return self.head.shape.taps

    def open(self) -> Features:
        """No rows."""
        none = torch.zeros(self.head.shape.kv_heads, 0, self.head.shape.head_dim)
        return Features(none, none)

    @torch.inference_mode()
    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """The likeliest tokens, as far as the head trusts its path."""
        found: list[list[Guess]] = [[] for _ in memories]
        live = [n for n, memory in enumerate(memories) if memory.tail is not None]
        if not live:
            return found
        some = [memories[n] for n in live]
        starts = embedded(self.model, [last[n] for n in live]).split(1)
        pairs = [m.start(last[n], e) for m, n, e in zip(some, live, starts, strict=True)]
        hidden = self.head.joined(torch.cat([f for _, f in pairs]))
        counts = [len(e) for e, _ in pairs]
        rows = self._rows(some, [list(range(m.position, m.position + n)) for m, n in zip(some, counts, strict=True)],
                          torch.cat([e for e, _ in pairs]), hidden, counts, keep=True)  # fmt: skip
        ends = torch.tensor(counts).cumsum(0) - 1
        tracks = [(m.keys, m.values) for m in some]
        rows, going = rows[ends], list(range(len(live)))
        for step in range(depth):
            going, picked = self._note(rows, [live[i] for i in going], going, found)
            if not going or step + 1 == depth:
                break
            path = [found[live[i]][-self._leaves(found[live[i]])].token for i in going]
            rows = self._rows(
                [some[i] for i in going], [[some[i].position + step] for i in going],
                embedded(self.model, path), rows[picked], [1] * len(going), keep=False,
            )  # fmt: skip
        for memory, (keys, values) in zip(some, tracks, strict=True):
            memory.keys, memory.values = keys, values
        return found

    def _rows(
        self, some: Sequence[Features], positions: Sequence[list[int]], embeds: Tensor, hidden: Tensor,
        counts: Sequence[int], *, keep: bool,
    ) -> Tensor:  # fmt: skip
        """One pass of the head; new rows join each memory, for good or until the guess is over."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            for memory, qi, ki, vi in zip(some, *(x.split(list(counts), dim=1) for x in (q, k, v)), strict=True):
                before = memory.keys.shape[1]
                if keep:
                    whole = torch.cat([memory.keys, ki], dim=1), torch.cat([memory.values, vi], dim=1)
                    memory.store(ki, vi)
                else:
                    whole = memory.keys, memory.values = (
                        torch.cat([memory.keys, ki], dim=1), torch.cat([memory.values, vi], dim=1)
                    )  # fmt: skip
                count = qi.shape[1]
                mask = torch.ones(count, before + count, dtype=torch.bool).tril(before)
                out.append(attention(qi, *whole, mask))
            return torch.cat(out)

        where = torch.tensor([p for part in positions for p in part])
        out: Tensor = self.head(embeds, hidden, where, attend)
        return out

    def _leaves(self, guesses: Sequence[Guess]) -> int:
        """How far from the end the token stands that the path follows: the first of the last group."""
        parent = guesses[-1].parent
        return sum(1 for g in guesses if g.parent == parent)

    def _note(
        self, rows: Tensor, owners: Sequence[int], going: Sequence[int], found: list[list[Guess]]
    ) -> tuple[list[int], list[int]]:
        """Write down the likeliest tokens after each path -> which go on, and where their rows stand."""
        chances = self.head.logits(rows).softmax(-1)
        best, index = chances.topk(min(self.width, chances.shape[-1]), dim=-1)
        tokens = self.head.tokens[index].tolist()
        on, places = [], []
        for place, (owner, who) in enumerate(zip(owners, going, strict=True)):
            mine = found[owner]
            parent = len(mine) - self._leaves(mine) if mine else -1
            before = mine[parent].chance if mine else 1.0
            for token, chance in zip(tokens[place], best[place].tolist(), strict=True):
                mine.append(Guess(token, parent, before * chance))
            if before * float(best[place, 0]) >= UNLIKELY:
                on.append(who)
                places.append(place)
        return on, places
