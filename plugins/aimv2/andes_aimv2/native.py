"""Encoders at native resolution: packed images, 2-D rotary positions, a stack of blocks.

Papers: NaViT packing (arXiv 2307.06304), AndesVL report (arXiv 2510.11496).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from andes_sdk.errors import InputError
from andes_sdk.inputs.patches import patch_positions
from andes_sdk.types import Grid, VisionSpec

from .fields import VisionFields

Rotation = tuple[Tensor, Tensor] | None
"""cos and sin, each (N, 1, head_dim / 2) in float32; None without rotary positions."""


def rotation(
    grids: Sequence[Grid], head_dim: int, merge: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of every patch's angles: rows turn the first half of them, columns the second; float32 throughout."""
    quarter = head_dim // 4
    frequencies = 1.0 / theta ** (torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    places = patch_positions(grids, merge, device).float()  # (N, 2)
    angles = (places[:, :, None] * frequencies).flatten(1)[:, None]  # (N, 1, head_dim / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn feature i with feature i + d/2: (N, H, d) -> (N, H, d), computed in float32, returned in x's type."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attend_within(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full attention inside each image; (N, H, d) each -> (N, H, d). No mask over the pack is ever built."""
    parts = zip(*(x.transpose(0, 1)[None].split(lengths, dim=2) for x in (q, k, v)), strict=True)  # (1, H, n, d)
    return torch.cat([F.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in parts])


def add_positions(x: Tensor, grids: Sequence[Grid], positions: Callable[[int, int], Tensor]) -> Tensor:
    """(N, Dv) -> (N, Dv), each image with the position table for its grid, in x's type."""
    tables = {grid: positions(*grid) for grid in dict.fromkeys(grids)}  # each distinct size once
    return x + torch.cat([tables[grid] for grid in grids]).to(x.dtype)


class NativeEncoder(nn.Module, ABC):
    """Base of a `VisionEncoder`; `gradient_checkpointing` recomputes blocks in the backward pass."""

    config: VisionFields

    def __init__(self, config: VisionFields, spec: VisionSpec) -> None:
        super().__init__()
        self.config, self.spec, self.gradient_checkpointing = config, spec, False

    @abstractmethod
    def parts(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        """Embedding of (patches, grids), blocks of (rows, rotation, lengths of the images), last norm."""

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) normalised pixels in block order, one (rows, columns) grid per image -> (N, Dv), same order.

        Raises:
            InputError: grids that do not add up to N, or a side that is no multiple of the merge.
        """
        config = self.config
        grids = [(h, w) for h, w in grids]
        lengths = [h * w for h, w in grids]
        check_grids(patches, grids, config)
        embed, blocks, norm = self.parts()
        x = cast(Tensor, embed(patches, grids))
        if not grids:
            return x
        turn: Rotation = None
        if not config.disable_rope:
            turn = rotation(grids, config.head_dim, config.hidden_stride, config.rope_theta, x.device)
        for block in blocks:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, turn, lengths, use_reentrant=False)
            else:
                x = block(x, turn, lengths)
        return cast(Tensor, norm(x))


def check_grids(patches: Tensor, grids: Sequence[Grid], config: VisionFields) -> None:
    """Refuse patches that the grids do not stand for.

    Raises:
        InputError: grids that do not add up, or a side that is no multiple of the merge.
    """
    total, pixels = sum(h * w for h, w in grids), config.num_channels * config.patch_size**2
    if tuple(patches.shape) != (total, pixels):
        raise InputError(
            f"patches of shape {tuple(patches.shape)} do not fit the grids {list(grids)}",
            who=config.plugin,
            why=f"these grids stand for {total} patches of {pixels} values (patch size {config.patch_size})",
            fix="prepare the images with the patch size and merge of this encoder's spec",
        )
    if any(side % config.hidden_stride for grid in grids for side in grid):
        raise InputError(
            f"the grids {list(grids)} cannot be split into blocks",
            who=config.plugin,
            fix=f"round both sides of each image to a multiple of {config.patch_size * config.hidden_stride} pixels",
        )
