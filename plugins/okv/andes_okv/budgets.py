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
        floor: share of their part of the rows that pictures get first, and all others too: of heads that compete
            together, else of each.
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
        flat, kinds = [s for some in scores for s in some], [image[p] for some in positions for p in some]
        if self.threshold is not None:
            flat = [torch.where(s >= self.threshold, s, float("-inf")) for s in flat]
        fixed = [
            self._fixed(s, p, seen, room, sinks, recent)
            for s, p in zip(flat, (p for some in positions for p in some), strict=True)
        ]
        heads = len(scores[0])
        size = {"head": 1, "uniform": 1, "layer": heads}.get(self.kind, len(flat))
        pictures = float(image.sum()) / max(1, seen)
        found: list[Tensor] = []
        for start in range(0, len(flat), size):
            some = slice(start, start + size)
            found += self._shared(flat[some], fixed[some], kinds[some], pictures, room * size)
        return [found[start : start + heads] for start in range(0, len(found), heads)]

    def _fixed(self, scores: Tensor, positions: Tensor, seen: int, room: int, sinks: int, recent: int) -> Tensor:
        """(n,) True for what stays before heads compete: sinks, recent rows, the safeguard."""
        stays = (positions < sinks) | (positions >= seen - recent)
        if self.kind in ("head", "uniform"):
            return stays
        return _with_best(stays, scores, torch.ones_like(stays), int(self.safeguard * room) - int(stays.sum()), room)

    def _shared(
        self, scores: list[Tensor], fixed: list[Tensor], kinds: list[Tensor], pictures: float, room: int
    ) -> list[Tensor]:
        """Ascending indices per head of what heads that compete keep, `room` in all.

        Floors of pictures and text count over these heads together: of text alone they would be a safeguard of each
        head, which takes half of the room from those that need it.

        Args:
            kinds: (n,) of each head, True for rows of pictures. pictures: their share of all rows seen.
        """
        together, stays, kind = torch.cat(scores), torch.cat(fixed), torch.cat(kinds)
        if 0 < pictures < 1:
            for mine, share in ((kind, pictures), (~kind, 1 - pictures)):
                least = int(self.floor * room * share)
                stays = _with_best(stays, together, mine, least - int((stays & mine).sum()), room)
        return [part.nonzero()[:, 0] for part in _best(together, stays, room).split([len(s) for s in scores])]


def _with_best(stays: Tensor, scores: Tensor, among: Tensor, more: int, room: int) -> Tensor:
    """(n,) the same, and as many `more` of the best rows among some; never more than `room` in all."""
    free = among & ~stays & (scores > float("-inf"))
    more = min(more, int(free.sum()), room - int(stays.sum()))
    if more <= 0:
        return stays
    best = scores.masked_fill(~free, float("-inf")).topk(more).indices
    return stays.index_fill(0, best, True)


def _best(scores: Tensor, stays: Tensor, room: int) -> Tensor:
    """(n,) True for what stays already, and for the best other rows, `room` in all.

    Rows that score −∞ do not stay unless they do already.
    """
    free = ~stays & (scores > float("-inf"))
    count = min(room - int(stays.sum()), int(free.sum()))
    drop = int(free.sum()) - max(0, count)
    if count > 0 and drop <= count:  # the shorter list is sought
        kept = stays | free
        kept[scores.masked_fill(~free, float("inf")).topk(drop, largest=False).indices] = False
        return kept
    if count > 0:
        return stays.index_fill(0, scores.masked_fill(~free, float("-inf")).topk(count).indices, True)
    return stays


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
