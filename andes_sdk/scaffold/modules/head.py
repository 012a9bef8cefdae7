"""One more head on the last hidden rows (Gloeckle et al. 2024, arXiv 2404.19737); a stage trains it, a decoder asks it.

Left out: the layer of its own that the paper gives each head.
"""

from __future__ import annotations

from torch import Tensor, nn


class Ahead(nn.Module):
    """Rows after the last norm -> logits of the token after the next."""

    def __init__(self, width: int, rank: int, vocab_size: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, vocab_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        logits: Tensor = self.up(nn.functional.silu(self.down(hidden)))
        return logits
