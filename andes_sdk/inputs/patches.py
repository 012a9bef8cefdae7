"""Patches in block order: the one layout that carries the pixel shuffle from pixels to the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from andes_sdk.types import Grid


def patchify(image: torch.Tensor, patch: int, merge: int = 2) -> torch.Tensor:
    """(3, H, W), H and W multiples of merge*patch -> (N, 3*patch*patch) in block order.

    Axes: block row, block column, row in block, column in block, channel, patch row, patch column,
    as in the published AndesVL evaluation code.
    """
    c, h, w = image.shape
    side = merge * patch
    x = image.reshape(c, h // side, merge, patch, w // side, merge, patch)
    return x.permute(1, 4, 2, 5, 0, 3, 6).reshape(-1, c * patch * patch)


def block_order(x: torch.Tensor, merge: int = 2) -> torch.Tensor:
    """(h, w, ...) one row per patch in reading order -> (h*w, ...) in block order."""
    h, w = x.shape[:2]
    x = x.reshape(h // merge, merge, w // merge, merge, *x.shape[2:])
    return x.transpose(1, 2).reshape(h * w, *x.shape[4:])


def patch_positions(grids: Sequence[Grid], merge: int = 2, device: torch.device | None = None) -> torch.Tensor:
    """Row and column of every patch, in block order -> (N, 2) int64."""
    parts = []
    for h, w in grids:
        rows = torch.arange(h, device=device)[:, None].expand(h, w)
        columns = torch.arange(w, device=device)[None, :].expand(h, w)
        parts.append(block_order(torch.stack([rows, columns], dim=-1), merge))
    return torch.cat(parts) if parts else torch.zeros(0, 2, dtype=torch.int64, device=device)


def split_rows(x: torch.Tensor, grids: Sequence[Grid]) -> tuple[torch.Tensor, ...]:
    """Rows packed over images (N, ...) -> one view per image."""
    return torch.split(x, [h * w for h, w in grids])
