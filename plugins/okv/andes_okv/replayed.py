"""One KV head while a chunk is replayed, and the attention that its rows get then."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from attrs import define
from torch import Tensor

if TYPE_CHECKING:
    from andes_sdk.types import Layer

    from .outputs import Outputs

BLOCK = 256
"""Replayed rows looked at together."""


@define(eq=False, slots=False)
class Replayed:
    """One KV head while a chunk is replayed; c rows of the chunk and some sinks are stored in it.

    Attributes:
        layer, index: which one.
        chosen: (m,) indices of the sinks and the chunk among the stored rows. sinks: how many of them are sinks.
        queries: (g, T, d) and own (T, d): queries and keys of the replayed rows.
        norms: (T,) of the replayed rows as they enter the layer, or None.
    """

    layer: Layer
    index: int
    chosen: Tensor
    sinks: int
    queries: Tensor
    own: Tensor
    norms: Tensor | None = None
    outputs: Outputs | None = None

    @cached_property
    def values(self) -> Tensor:
        """(c, d) of the chunk."""
        return self.layer.values[self.index][self.chosen[self.sinks :]].float()

    def highest(self, by_query: Tensor | None = None, by_row: Tensor | None = None) -> Tensor:
        """(c,) the highest attention over replayed rows and query heads, times (T,) and (g, c) where they are given."""
        keys = torch.cat([self.layer.keys[self.index][self.chosen].float(), self.own.float()])  # (m + T, d)
        stored, count = len(self.chosen), self.queries.shape[1]
        best = keys.new_zeros(stored - self.sinks)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            logits = self.queries[:, start:stop].float() @ keys.T * keys.shape[-1] ** -0.5  # (g, b, m + T)
            later = torch.ones(stop - start, count, dtype=torch.bool, device=keys.device).triu(start + 1)
            logits[:, :, stored:].masked_fill_(later, float("-inf"))
            share = logits.softmax(dim=-1)[:, :, self.sinks : stored]  # (g, b, c)
            if by_query is not None:
                share = share * by_query[start:stop, None]
            if by_row is not None:
                share = share * by_row[:, None]
            best = torch.maximum(best, share.amax(dim=(0, 1)))
        return best
