"""Drafter `block`: a head guesses several tokens in one pass, on the features of the model's inner layers.

Each conversation has the head's keys and values of its own, of at most `WINDOW` rows that the model read last. One pass
of the head serves all conversations; attention runs for each alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from .block import Block
from .drafter import Guess
from .eagle import attention
from .head_drafter import UNLIKELY, WINDOW, embedded

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Rows


@define(eq=False)
class Read:
    """What the model read in one conversation.

    Attributes:
        kept: of each layer of the head keys and values (Hkv, n, d). position: where the next row stands.
        todo: features (n, taps, D) that have no keys yet.
    """

    kept: list[tuple[Tensor, Tensor]]
    position: int = 0
    todo: list[Tensor] = field(factory=list)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, with their features."""
        # a copy, so that the other rows of the pass need not live on
        self.todo.append(rows.features[-WINDOW:].to("cpu", torch.float32, copy=True))
        self.position += len(rows.features)
        while sum(map(len, self.todo[1:])) >= WINDOW:  # nobody will see what stands before
            del self.todo[0]

    def fork(self) -> Read:
        """A copy; tensors are shared, since nothing writes into them."""
        return Read(list(self.kept), self.position, list(self.todo))

    def settle(self, head: Block) -> None:
        """Keys and values of what was read since; the oldest beyond the window go."""
        if self.todo:
            some = torch.cat(self.todo)[-WINDOW:]
            self.todo = []
            new = head.context(some, torch.arange(self.position - len(some), self.position))
            pairs = zip(self.kept, new, strict=True)
            self.kept = [(_last(k, a), _last(v, b)) for (k, v), (a, b) in pairs]


def _last(before: Tensor, new: Tensor) -> Tensor:
    return torch.cat([before, new], dim=1)[:, -WINDOW:]


@frozen(eq=False)
class BlockDrafter:
    """Guesses a path of the head's likeliest tokens, with leaves beside it."""

    head: Block
    model: VisionLanguageModel
    width: int = 3
    name: str = "block"
    free: bool = False

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
        none = torch.zeros(self.head.shape.kv_heads, 0, self.head.shape.head_dim)
        return Read([(none, none)] * self.head.shape.layers)

    @torch.inference_mode()
    def guess(self, memories: Sequence[Any], last: Sequence[int], depth: int) -> list[list[Guess]]:
        """The block behind each last token, as far as the head trusts it."""
        for memory in memories:
            memory.settle(self.head)
        size = self.head.shape.block

        def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            for memory, qi, ki, vi in zip(memories, *(x.split(size, dim=1) for x in (q, k, v)), strict=True):
                keys, values = (torch.cat(pair, dim=1) for pair in zip(memory.kept[layer], (ki, vi), strict=True))
                out.append(attention(qi, keys, values, torch.ones(size, keys.shape[1], dtype=torch.bool)))
            return torch.cat(out)

        where = torch.tensor([m.position for m in memories])
        logits, trust = self.head(embedded(self.model, last), where, see)
        best, index = logits.softmax(-1).topk(min(self.width, logits.shape[-1]), dim=-1)
        tokens = self.head.tokens[index]
        some = zip(tokens.tolist(), best.tolist(), trust.sigmoid().tolist(), strict=True)
        return [_path(*each, min(depth, size)) for each in some]


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
