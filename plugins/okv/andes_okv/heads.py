"""One KV head as scorers see it, and the attention that its rows get."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from attrs import define
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

if TYPE_CHECKING:
    from andes_sdk.types import Layer

    from .outputs import Outputs

TINY = 1e-12


@define(eq=False, slots=False)
class Head:
    """One KV head of one layer; n rows are stored. Tensors are read when they are looked at, in float32.

    Attributes:
        index: which KV head of the layer.
        queries: (g, w, d), the last queries of the g query heads that share this KV head.
        at: (w,) positions of the queries.
        seen: rows of the session so far. since: as many had been seen when the scorer was last asked.
        room: rows that a head may keep, on average.
        past: (m,) what the scorer said last of the first m of these rows; None at first, or if it does not remember.
        given: (n,) what was said of the rows when they were made, or None.
        outputs: the output projections, for scorers that weigh by them.
    """

    layer: Layer
    index: int
    queries: Tensor
    at: Tensor
    seen: int
    since: int = 0
    room: int = 0
    past: Tensor | None = None
    given: Tensor | None = None
    outputs: Outputs | None = None

    @cached_property
    def positions(self) -> Tensor:
        """(n,)"""
        return self.layer.positions[self.index]

    @cached_property
    def keys(self) -> Tensor:
        """(n, d)"""
        return self.layer.keys[self.index].float()

    @cached_property
    def values(self) -> Tensor:
        """(n, d)"""
        return self.layer.values[self.index].float()

    def attention(self, queries: slice = slice(None)) -> Tensor:
        """(g, w, n) softmax over the stored rows that stand no later than each query; keys are scaled by 1/√d."""
        return attention(self.queries[:, queries].float(), self.at[queries], self.keys, self.positions)

    @property
    def windowed(self) -> Tensor:
        """(n,) True for rows that stand in the window of queries, or after it."""
        first = int(self.at[0]) if len(self.at) else self.seen
        return self.positions >= first

    def spare_window(self, scores: Tensor) -> Tensor:
        """(n,) the same scores, but those of the window's own rows, which few queries have seen, are above all others.

        Source: SnapKV, section 4: the observation window always stays.
        """
        inside = self.windowed
        if bool(inside.all()):
            return torch.ones_like(scores)
        return torch.where(inside, scores[~inside].max() + 1, scores)


def attention(queries: Tensor, at: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
    """(g, w, d) queries at (w,), (n, d) keys at (n,) -> (g, w, n). A query that sees no row gives zeros."""
    logits = queries @ keys.T * keys.shape[-1] ** -0.5
    hidden = positions[None, :] > at[:, None]  # (w, n)
    shares: Tensor = logits.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return shares.nan_to_num(0.0)


def averaged(scores: Tensor, width: int) -> Tensor:
    """(g, n) -> (g, n), each the mean of `width` neighbours, zeros beyond the ends; widths are odd."""
    return avg_pool1d(scores[None], width, stride=1, padding=width // 2)[0]


def highest(scores: Tensor, width: int) -> Tensor:
    """(g, n) -> (g, n), each the highest of `width` neighbours."""
    return max_pool1d(scores[None], width, stride=1, padding=width // 2)[0]
