"""Each block of patches is contiguous, so merging is a reshape; then two linear layers with a narrow middle."""

from __future__ import annotations

from torch import Tensor, nn


class Bottleneck(nn.Module):
    """(N, Dv) in block order -> (N / merge**2, D)."""

    def __init__(self, block: int, rank: int, width: int) -> None:
        super().__init__()
        self.block = block
        self.down = nn.Linear(block, rank)
        self.up = nn.Linear(rank, width)
        self.act = nn.GELU()

    def forward(self, features: Tensor) -> Tensor:
        """One row per block; rows never meet."""
        rows: Tensor = self.up(self.act(self.down(features.reshape(-1, self.block))))
        return rows
