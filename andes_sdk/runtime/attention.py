"""Attention over packed samples: no row ever sees another sample, and no mask spans the pack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch.nn.functional import scaled_dot_product_attention


@frozen
class Segment:
    """Rows of one packed sample: a prefix, then branches that each see the prefix and themselves only.

    An ordinary sample is a prefix with no branches. Branches let many questions share one picture without seeing
    one another's answers; the result equals that of separate samples.
    """

    prefix: int
    branches: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of prefix and branches together."""
        return self.prefix + sum(self.branches)

    def positions(self) -> torch.Tensor:
        """(rows,) positions; each branch goes on where the prefix ends."""
        parts = [torch.arange(self.prefix)]
        parts += [torch.arange(self.prefix, self.prefix + n) for n in self.branches]
        return torch.cat(parts)

    def mask(self, device: torch.device) -> torch.Tensor | None:
        """(rows, rows) bool, True where a row may look; None: plain causal."""
        if not self.branches:
            return None
        mask = torch.ones(self.rows, self.rows, dtype=torch.bool, device=device).tril()
        start = self.prefix
        for length in self.branches:
            mask[start : start + length, self.prefix : start] = False
            start += length
        return mask


@frozen(eq=False)
class PackedAttention:
    """`Attend` for a pack of samples, each on its own: block-diagonal without a block-diagonal mask."""

    segments: Sequence[Segment]
    _masks: dict[int, torch.Tensor | None] = field(factory=dict, init=False)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        lengths = [s.rows for s in self.segments]
        out = []
        parts = zip(*(torch.split(x, lengths, dim=2) for x in (q, k, v)), strict=True)
        for index, (qi, ki, vi) in enumerate(parts):
            mask = self._masks.setdefault(index, self.segments[index].mask(q.device))
            out.append(
                scaled_dot_product_attention(
                    qi, ki, vi, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
                )
            )
        return torch.cat(out, dim=2).transpose(1, 2)
