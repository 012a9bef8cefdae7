"""DropKV: how far the output moves without a row, exactly.

Leaving row j out of attention p with output o gives o + p/(1−p)·(o − v_j), so the squared change over the window is
s_j = Σ_i (p_ij / (1 − p_ij))²·‖v_j − o_i‖². Source: kvpress pull requests 284 and 285 (2026). The mean over the query
heads of a KV head is ours. The window itself stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from attrs import frozen

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head

LEAST = 1e-6
"""Of 1 − p: a row that gets all the attention is worth much, not infinitely much."""


@frozen(eq=False, kw_only=True)
class DropKV(Scorer):
    """Leave-one-out error of the output before W_O."""

    name: ClassVar[str] = "dropkv"

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        if not len(head.at):
            return head.positions.new_zeros(len(head.positions)).float()
        p = head.attention()  # (g, w, n)
        odds = p / (1 - p).clamp(min=LEAST)
        moved = torch.cdist(
            p @ head.values, head.values[None], compute_mode="donot_use_mm_for_euclid_dist"
        )  # (g, w, n)
        return head.spare_window((odds * moved).square().sum(dim=1).mean(dim=0))
