"""A linear map from what enters a layer to the log of the KVzip+ score of each KV head: one pass, no replay.

Source: KVzap, Jegou and Jeblick 2026, arXiv 2601.07891, section 3. The map is fitted by ridge regression
(`andes okv fit`). Kept: a linear map per layer, the log of the score, scores that never change. Ours: the input is the
residual stream divided by its root mean square, and pictures are part of the data. Left out: the two-layer MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen
from torch import Tensor

from .base import Scorer

if TYPE_CHECKING:
    from andes_okv.heads import Head

EPSILON = 1e-12
"""Rows of zeros stay zeros."""


@frozen(eq=False, kw_only=True)
class Learned(Scorer):
    """Scores are made with the rows, and only looked up here.

    Attributes:
        maps: per layer a weight (Hkv, D) and a bias (Hkv,).
    """

    name: ClassVar[str] = "learned"
    taps: ClassVar[bool] = True

    maps: list[tuple[Tensor, Tensor]] = field(factory=list)

    def made(self, layer: int, hidden: Tensor) -> Tensor | None:
        """(T, D) -> (Hkv, T) float32, logs of scores."""
        weight, bias = self.maps[layer]
        return weight.to(hidden.device) @ normal(hidden).T + bias.to(hidden.device)[:, None]

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        assert head.given is not None
        return head.given


def normal(hidden: Tensor) -> Tensor:
    """(T, D) -> (T, D) float32 of root mean square 1."""
    rows = hidden.float()
    return rows * (rows.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()
