"""DINOv2 at native resolution on packed images.

Papers: DINOv2 (arXiv 2304.07193), ViT (arXiv 2010.11929), LayerScale (arXiv 2103.17239), NaViT packing (2307.06304).
Kept: the published state-dict names, one class token per image, the learned position table resized bicubically to each
image. Left out: registers (the small model has none), SwiGLU (giant only), dropout and stochastic depth (zero in use).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andes_sdk.errors import InputError
from andes_sdk.inputs.patches import block_order, split_rows
from andes_sdk.types import Grid, VisionSpec

from .config import Sizes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# nn.ModuleDict below stands for the levels that exist in the published names only.


class Embeddings(nn.Module):
    """Patch projection, class token, and the position table resized to each image's grid."""

    def __init__(self, sizes: Sizes, merge: int) -> None:
        super().__init__()
        self.merge, self.side = merge, sizes.table_side
        self.cls_token = nn.Parameter(torch.empty(1, 1, sizes.width))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + sizes.table_side**2, sizes.width))
        projection = nn.Conv2d(3, sizes.width, kernel_size=sizes.patch_size, stride=sizes.patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def positions(self, h: int, w: int) -> Tensor:
        """(h*w, Dv) in block order; interpolated in float32 whatever the table's type."""
        table = self.position_embeddings[:, 1:].float().transpose(1, 2).unflatten(2, (self.side, self.side))
        table = F.interpolate(table, size=(h, w), mode="bicubic", align_corners=False)  # (1, Dv, h, w)
        return block_order(table[0].permute(1, 2, 0), self.merge)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) -> (N + images, Dv): each image's class token, then its patches."""
        projection = self.patch_embeddings["projection"]
        x = F.linear(patches.to(projection.weight.dtype), projection.weight.flatten(1), projection.bias)
        first = (self.cls_token[0] + self.position_embeddings[0, :1]).to(x.dtype)
        tables = {grid: self.positions(*grid).to(x.dtype) for grid in dict.fromkeys(grids)}  # each size once
        images = zip(split_rows(x, grids), grids, strict=True)
        return torch.cat([part for rows, grid in images for part in (first, rows + tables[grid])])


class Attention(nn.Module):
    """Full attention inside each image."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        width = sizes.width
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """(rows, Dv) -> (rows, Dv); `lengths` are the rows of each image. No mask over the pack is ever built."""
        q, k, v = (
            self.attention[name](x).unflatten(1, (self.heads, -1)).transpose(0, 1)[None].split(lengths, dim=2)
            for name in ("query", "key", "value")
        )  # one (1, H, n, d) per image
        mixed = [F.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in zip(q, k, v, strict=True)]
        return self.output["dense"](torch.cat(mixed).flatten(1))


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)), exact GELU."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.inner)
        self.fc2 = nn.Linear(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """(rows, Dv) -> (rows, Dv)."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(rows, Dv) -> (rows, Dv)."""
        return x * self.lambda1


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled and added to its input."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=sizes.norm_eps)
        self.attention = Attention(sizes)
        self.layer_scale1 = LayerScale(sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, eps=sizes.norm_eps)
        self.mlp = Mlp(sizes)
        self.layer_scale2 = LayerScale(sizes.width)

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """(rows, Dv) -> (rows, Dv)."""
        x = x + self.layer_scale1(self.attention(self.norm1(x), lengths))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class DinoV2Encoder(nn.Module):
    """`VisionEncoder`: features of the patches after the last norm; the class tokens stay inside."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.spec = VisionSpec(
            width=sizes.width, patch_size=sizes.patch_size, merge=2, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
        self.embeddings = Embeddings(sizes, self.spec.merge)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block(sizes) for _ in range(sizes.layers))})
        self.layernorm = nn.LayerNorm(sizes.width, eps=sizes.norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights, class token and position table normal with deviation 0.02, biases 0, norms and scales 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.embeddings.cls_token, std=0.02)
        nn.init.trunc_normal_(self.embeddings.position_embeddings, std=0.02)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) normalised pixels in block order, one (rows, columns) grid per image -> (N, Dv), same order.

        Raises:
            InputError: grids that do not add up to N, or a side that is no multiple of the merge.
        """
        grids = [(h, w) for h, w in grids]
        _check(patches, grids, self.spec)
        if not grids:
            return patches.new_zeros(0, self.spec.width, dtype=self.layernorm.weight.dtype)
        lengths = [1 + h * w for h, w in grids]
        x = self.embeddings(patches, grids)
        for block in self.encoder["layer"]:
            x = block(x, lengths)
        return torch.cat([rows[1:] for rows in self.layernorm(x).split(lengths)])


def _check(patches: Tensor, grids: Sequence[Grid], spec: VisionSpec) -> None:
    wanted = (sum(h * w for h, w in grids), 3 * spec.patch_size**2)
    if tuple(patches.shape) != wanted:
        raise InputError(
            f"patches of shape {tuple(patches.shape)} do not fit the grids {list(grids)}",
            who="dinov2",
            why=f"these grids stand for {wanted[0]} patches of {wanted[1]} values",
            fix="prepare the images with the patch size and merge of this encoder's spec",
        )
    if any(side < 1 or side % spec.merge for grid in grids for side in grid):
        fix = f"round both sides of each image up to a multiple of {spec.patch_size * spec.merge} pixels"
        raise InputError(f"the grids {list(grids)} cannot be split into blocks", who="dinov2", fix=fix)
