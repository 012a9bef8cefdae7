"""The smallest encoder that sees: a linear layer per patch, its place, and the mean of its picture.

Pictures are packed on one axis. Whatever mixes rows must stay inside a picture: `split_rows` gives one view for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from andes_sdk.errors import ConfigError, InputError
from andes_sdk.inputs.patches import patch_positions, split_rows
from andes_sdk.types import Grid, VisionSpec


class MeanEncoder(nn.Module):
    """(N, 3*p*p) patches of several pictures -> (N, Dv).

    Raises:
        ConfigError: the width is no multiple of 4 (sine and cosine, for rows and columns).
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        if width % 4:
            raise ConfigError(f"width {width} is no multiple of 4", who="example", fix="use 256 or 512")
        self.spec = VisionSpec(width=width, patch_size=patch_size, merge=2)
        self.embed = nn.Linear(3 * patch_size**2, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Features in the order of the patches, which is block order (`andes_sdk.inputs.patches.patchify`)."""
        if len(patches) != sum(h * w for h, w in grids):
            raise InputError(f"{len(patches)} patches do not fill the grids {list(grids)}", who="example")
        places = patch_positions(grids, self.spec.merge, patches.device)  # (N, 2)
        x = self.embed(patches) + self.waves(places).to(patches.dtype)  # (N, Dv)
        means = [part.mean(0, keepdim=True).expand_as(part) for part in split_rows(x, grids)]
        features: Tensor = self.norm(x + self.mix(torch.cat(means) if means else x))
        return features

    def waves(self, places: Tensor) -> Tensor:
        """(N, 2) rows and columns -> (N, Dv) sines and cosines, in float32."""
        count = self.spec.width // 4
        steps = torch.arange(count, device=places.device, dtype=torch.float32)
        angles = places[..., None].float() * 100.0 ** (-steps / count)  # (N, 2, Dv / 4)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
