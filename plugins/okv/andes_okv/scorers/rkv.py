"""R-KV: attention minus redundancy, for long reasoning.

Source: Cai et al. 2025, arXiv 2505.24133, equations 2 to 6, and its repository Zefan-Cai/R-KV (`r1_kv.py`).
s = 0.07·maxpool₇(mean over the last 8 queries of softmax(q kᵀ/√d)) − 0.93·softmax(mean over i of cos(k_i, k_j)). Of the
rows similar to row i (cosine above 0.5) the last one is spared: its cosine counts as 0. Logits are the highest of the
query heads of a KV head, and the window's own rows take no part in the attention. The window itself stays.
Left out: its code spares row 0 where nothing is similar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from attrs import frozen

from andes_okv.heads import TINY, highest

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head

BLOCK = 1024
"""Rows compared with all others at a time."""


@frozen(eq=False, kw_only=True)
class RKV(Scorer):
    """Importance of the last queries minus redundancy of keys."""

    name: ClassVar[str] = "rkv"
    kernel: int = 7
    share: float = 0.07
    similar: float = 0.5

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        before = ~head.windowed
        scores = -(1 - self.share) * redundancy(head.keys, self.similar)
        if len(head.at) and bool(before.any()):
            keys = head.keys[before]
            logits = (head.queries.float() @ keys.T * keys.shape[-1] ** -0.5).amax(dim=0)  # (w, rows before)
            attention = logits.softmax(dim=-1).mean(dim=0)
            scores[before] += self.share * highest(attention[None], self.kernel)[0]
        return head.spare_window(scores)


def redundancy(keys: Tensor, similar: float) -> Tensor:
    """(n, d) -> (n,) softmax of the mean cosine of each row with the others, the last similar one of each spared."""
    count = len(keys)
    unit = keys / (keys.norm(dim=-1, keepdim=True) + TINY)
    total, places = keys.new_zeros(count), torch.arange(count, device=keys.device)
    for start in range(0, count, BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T  # (b, n)
        own = places[start : start + BLOCK]
        cosine[torch.arange(len(own)), own] = 0
        last = torch.where(cosine > similar, places, -1).amax(dim=1)  # (b,)
        rows = (last >= 0).nonzero()[:, 0]
        cosine[rows, last[rows]] = 0
        total += cosine.sum(dim=0)
    return (total / max(1, count)).softmax(dim=0)
