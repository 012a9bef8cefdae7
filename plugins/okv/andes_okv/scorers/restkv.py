"""ReST-KV: leave-one-out error after W_O, smoothed over time and place.

Source: An et al., ICLR 2026, and its repository an-yongqi/rest-kv. The attention of the window's queries is averaged
with p ← 0.3·p_i + 0.7·p, from the oldest to the newest. Then s_j = p_j/(1 − p_j)·‖W_O (Σ p v − v_j)‖₂. Pooling is
adaptive: the mean over k = max(5, 2·⌊|t|/2000⌋ + 1) neighbours, moved by t/2000 rows towards zero, where t is how far
the rows that get most attention stand apart in the first and in the second half of the window. Of the rows that get
most, as many count as a head may keep. The mean over the query heads of a KV head is ours: its own code keeps rows
per query head. The window itself stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from attrs import frozen
from torch.nn.functional import avg_pool1d, pad

from .base import Scorer
from .dropkv import LEAST

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head

STRIDE = 2000
"""Rows of movement that widen the pooling by two and shift it by one."""


@frozen(eq=False, kw_only=True)
class ReSTKV(Scorer):
    """Odds times the length of the change, with an average over the window."""

    name: ClassVar[str] = "restkv"
    weighs: ClassVar[bool] = True
    factor: float = 0.3
    kernel: int = 5

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        assert head.outputs is not None
        before = ~head.windowed
        scores = head.positions.new_zeros(len(head.positions)).float()
        if not len(head.at) or not bool(before.any()):
            return head.spare_window(scores)
        every = head.attention()  # (g, w, n)
        p = every[:, 0, before]
        for step in range(1, every.shape[1]):
            p = self.factor * every[:, step, before] + (1 - self.factor) * p
        values = head.values[before]
        change = (p @ values)[:, None] - values  # (g, rows, d)
        lengths = torch.stack(
            [head.outputs.euclidean(head.layer.index, head.index, one)[g] for g, one in enumerate(change)]
        )
        worth = p / (1 - p).clamp(min=LEAST) * lengths  # (g, rows)
        moved = _moved(every[:, :, before], head.room)
        pooled = [pooled_by(one, self.kernel, float(t)) for one, t in zip(worth, moved, strict=True)]
        scores[before] = torch.stack(pooled).mean(dim=0)
        return head.spare_window(scores)


def _moved(attention: Tensor, room: int) -> Tensor:
    """(g, w, n) -> (g,) mean place of the most attended rows in the first half of the window minus the second's."""
    most = min(max(1, room), attention.shape[2])
    places = attention.topk(most, dim=-1).indices.float().mean(dim=-1)  # (g, w)
    half = places.shape[1] // 2
    if not half:
        return places.new_zeros(len(places))
    return places[:, :half].mean(dim=1) - places[:, half:].mean(dim=1)


def pooled_by(scores: Tensor, kernel: int, moved: float) -> Tensor:
    """(n,) -> (n,) means over a width that grows with the movement, and shifted with it; ends are repeated."""
    width = max(kernel, 2 * int(abs(moved) // STRIDE) + 1)
    shift = int(moved / STRIDE)
    left, right = width // 2 - shift, width // 2 + shift
    return avg_pool1d(pad(scores[None, None], (left, right), mode="replicate"), width, stride=1)[0, 0]
