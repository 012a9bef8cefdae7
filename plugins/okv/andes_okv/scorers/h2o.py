"""H2O: heavy hitters, by all the attention that a row ever got.

Source: Zhang et al. 2023, arXiv 2306.14048, algorithm 1: s_i = Σ over all queries t ≥ i of softmax(q_t kᵀ/√d)_i. The
sum goes on from eviction to eviction. Rows that are gone take no share of the attention, as in the paper. The mean over
the query heads of a KV head is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head

BLOCK = 256
"""Queries looked at together."""


@frozen(eq=False, kw_only=True)
class HeavyHitters(Scorer):
    """Accumulated attention."""

    name: ClassVar[str] = "h2o"
    remembers: ClassVar[bool] = True
    every_query: ClassVar[bool] = True

    def __call__(self, head: Head) -> Tensor:
        """(n,): the sum so far, and the attention of the queries that came since."""
        scores = head.positions.new_zeros(len(head.positions)).float()
        if head.past is not None:
            scores[: len(head.past)] = head.past
        first = int((head.at < head.since).sum())
        for start in range(first, len(head.at), BLOCK):
            scores += head.attention(slice(start, start + BLOCK)).sum(dim=1).mean(dim=0)
        return scores
