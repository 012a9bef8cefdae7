"""SnapKV: what the last queries look at, smoothed.

Source: Li et al. 2024, arXiv 2404.14469, equations 1 to 3. s = pool₅(mean over the window of softmax(q kᵀ/√d)). The
mean over the query heads of a KV head follows issue 22 of its repository, and kvpress. The window itself stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from andes_okv.heads import averaged

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head


@frozen(eq=False, kw_only=True)
class SnapKV(Scorer):
    """Mean attention of the window, averaged over 5 neighbours."""

    name: ClassVar[str] = "snapkv"
    kernel: int = 5

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        return head.spare_window(window_attention(head, self.kernel))


def window_attention(head: Head, kernel: int) -> Tensor:
    """(n,) mean attention of the window, smoothed among the rows before it; zeros for those inside."""
    before = ~head.windowed
    scores = head.positions.new_zeros(len(head.positions)).float()
    if len(head.at) and bool(before.any()):
        mean = head.attention().mean(dim=1)[:, before]  # (g, rows before the window)
        scores[before] = averaged(mean, kernel).mean(dim=0)
    return scores
