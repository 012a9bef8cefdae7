"""Which rows stay, once each has a score: budgets of heads, of layers, of all, or a threshold.

Sources: equal shares per head; AdaKV (Feng et al. 2024, arXiv 2407.11550, algorithm 1: the best rows of a layer,
whatever their head, with a safeguard for each head); KVzip (arXiv 2505.23416: the best rows of all layers and heads);
DMS and KVzap (arXiv 2601.07891: a threshold). `uniform` adds up ranks (Borda counts), so that scales of heads do not
matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor


@frozen(kw_only=True)
class Budget:
    """How room is shared out.

    Attributes:
        kind: one of `options.KINDS`, never auto.
        safeguard: share of an even split that each head gets first, where they compete.
        floor: share of an even split that rows of pictures get first in each head, and all others too.
        threshold: least score that stays, under `threshold`; None: no such limit.
    """

    kind: str = "head"
    safeguard: float = 0.0
    floor: float = 0.0
    threshold: float | None = None

    def keep(
        self,
        scores: Sequence[Sequence[Tensor]],
        positions: Sequence[Sequence[Tensor]],
        image: Tensor,
        *,
        room: int,
        sinks: int,
        recent: int,
    ) -> list[list[Tensor]]:
        """Indices of the rows to keep, per layer and KV head, ascending.

        Args:
            scores: (n,) of each head. positions: (n,) of its rows. image: (seen,) True for rows of pictures.
            room: rows per head, on average. It holds sinks and recent rows, which stay whatever they score.
        """
        seen = len(image)
        if self.kind == "uniform":
            scores = uniform(scores, positions, seen)
        fixed = []
        for some, places in zip(scores, positions, strict=True):
            fixed.append([self._fixed(s, p, image, room, sinks, recent) for s, p in zip(some, places, strict=True)])
        if self.kind in ("head", "uniform"):
            return [[_best([s], [f], room)[0] for s, f in zip(*pair, strict=True)] for pair in _pairs(scores, fixed)]
        if self.kind == "layer":
            return [_best(s, f, room * len(s)) for s, f in _pairs(scores, fixed)]
        flat, own = [s for some in scores for s in some], [f for some in fixed for f in some]
        if self.threshold is not None:
            flat = [torch.where(s >= self.threshold, s, float("-inf")) for s in flat]
        chosen = iter(_best(flat, own, room * len(flat)))
        return [[next(chosen) for _ in some] for some in scores]

    def _fixed(self, scores: Tensor, positions: Tensor, image: Tensor, room: int, sinks: int, recent: int) -> Tensor:
        """(n,) True for what stays before heads compete: sinks, recent rows, floors of modalities, the safeguard."""
        seen = len(image)
        stays = (positions < sinks) | (positions >= seen - recent)
        pictures, fit = image[positions], torch.ones_like(stays)
        if self.threshold is not None:  # floors and safeguards hold against competition, not against a threshold
            fit = scores >= self.threshold
        for kind in (pictures, ~pictures):
            share = int(image.sum()) if kind is pictures else seen - int(image.sum())
            least = int(self.floor * room * share / max(1, seen))
            stays = _with_best(stays, scores, kind & fit, least - int((stays & kind).sum()), room)
        if self.kind in ("layer", "global", "threshold"):
            least = int(self.safeguard * room)
            stays = _with_best(stays, scores, fit, least - int(stays.sum()), room)
        return stays


def _pairs(a: Sequence[Sequence[Tensor]], b: Sequence[Sequence[Tensor]]) -> list[tuple[list[Tensor], list[Tensor]]]:
    return [(list(x), list(y)) for x, y in zip(a, b, strict=True)]


def _with_best(stays: Tensor, scores: Tensor, among: Tensor, more: int, room: int) -> Tensor:
    """(n,) the same, and as many `more` of the best rows among some; never more than `room` in all."""
    free = among & ~stays
    more = min(more, int(free.sum()), room - int(stays.sum()))
    if more <= 0:
        return stays
    best = scores.masked_fill(~free, float("-inf")).topk(more).indices
    return stays.index_fill(0, best, True)


def _best(scores: list[Tensor], fixed: list[Tensor], room: int) -> list[Tensor]:
    """Ascending indices per head of what is fixed, and of the best other rows of all these heads, `room` in all.

    Rows that score −∞ do not stay unless they are fixed.
    """
    together, stays = torch.cat(scores), torch.cat(fixed)
    free = ~stays & (together > float("-inf"))
    count = min(room - int(stays.sum()), int(free.sum()))
    drop = int(free.sum()) - max(0, count)
    if count > 0 and drop <= count:  # the shorter list is sought
        kept = stays | free
        kept[together.masked_fill(~free, float("inf")).topk(drop, largest=False).indices] = False
    elif count > 0:
        kept = stays.index_fill(0, together.masked_fill(~free, float("-inf")).topk(count).indices, True)
    else:
        kept = stays
    return [part.nonzero()[:, 0] for part in kept.split([len(s) for s in scores])]


def uniform(scores: Sequence[Sequence[Tensor]], positions: Sequence[Sequence[Tensor]], seen: int) -> list[list[Tensor]]:
    """The same score in every head and layer for the row of a position: the mean of its ranks (0 worst, 1 best).

    Raises:
        ValueError: heads that hold different rows.
    """
    first = positions[0][0]
    if any(not torch.equal(first, p) for some in positions for p in some):
        raise ValueError("heads hold different rows, so they cannot be judged together")
    total = torch.zeros(len(first), device=first.device)
    for some in scores:
        for one in some:
            total += one.argsort(stable=True).argsort().float() / max(1, len(one) - 1)
    count = sum(len(some) for some in scores)
    return [[total / count for _ in some] for some in scores]
