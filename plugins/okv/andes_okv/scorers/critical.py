"""CriticalKV: attention times what a value adds to the output.

Source: Feng et al. 2025, arXiv 2502.03805, algorithm 1, over SnapKV's attention A. Half of the room goes to the rows of
highest A; the others compete by (A + 1e-4)·‖W_O v‖₁. The mean over the query heads of a KV head follows kvpress.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .base import Scorer
from .snapkv import window_attention

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head


@frozen(eq=False, kw_only=True)
class CriticalKV(Scorer):
    """SnapKV, weighed by ‖W_O v‖₁ in a second stage."""

    name: ClassVar[str] = "critical"
    weighs: ClassVar[bool] = True
    kernel: int = 5
    epsilon: float = 1e-4
    first: float = 0.5
    """Share of the room that attention alone gives away."""

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        assert head.outputs is not None
        attention = head.spare_window(window_attention(head, self.kernel))
        chosen = attention.topk(min(len(attention), int(head.room * self.first))).indices
        lengths = head.outputs.absolute(head.layer.index, head.index, head.values).mean(dim=0)
        scores = (attention + self.epsilon) * lengths
        # in the order of attention, above everything the second stage can give
        scores[chosen] = scores.max() + 1 + attention[chosen]
        return head.spare_window(scores)
