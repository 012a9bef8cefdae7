"""SigLIP2 at native resolution: the vision encoder of AndesVL 0.6B.

Papers: SigLIP 2 (arXiv 2502.14786), NaViT packing (arXiv 2307.06304), AndesVL report (arXiv 2510.11496).
Kept from the published AndesVL evaluation code: state-dict names, the patch embedding as a linear layer, the learned
position table sampled bicubically for each image, 2-D rotary positions. The activation follows `hidden_act` (the
published configuration names the tanh approximation, that code computes the exact GELU). Left out: the pooling head,
which AndesVL does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from andes_sdk.errors import InputError
from andes_sdk.inputs.patches import block_order, patch_positions
from andes_sdk.types import Grid, VisionSpec

from .config import SigLIP2Config

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


class Embeddings(nn.Module):
    """A linear layer over flattened patches plus the learned position table, sampled for each image's grid."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        if config.preserve_original_pe:
            self.pos_embed = nn.Embedding(config.num_patches, config.hidden_size)

    def positions(self, h: int, w: int) -> Tensor:
        """(h*w, Dv) in block order; interpolated in float32 whatever the table's type."""
        table = self.pos_embed.weight.float().T.unflatten(1, (self.config.table_side, -1))[None]  # (1, Dv, side, side)
        table = F.interpolate(table, size=(h, w), mode="bicubic", align_corners=False)
        return block_order(table[0].permute(1, 2, 0), self.config.hidden_stride)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) -> (N, Dv), in the weights' type."""
        x = self.proj(patches.to(self.proj.weight.dtype))
        if not self.config.preserve_original_pe or not grids:
            return x
        tables = {grid: self.positions(*grid) for grid in dict.fromkeys(grids)}  # each distinct size once
        return x + torch.cat([tables[grid] for grid in grids]).to(x.dtype)


class Attention(nn.Module):
    """Separate projections with biases, rotary positions, attention inside each image."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Rotation, lengths: Sequence[int]) -> Tensor:
        """(N, Dv) -> (N, Dv); `lengths` are the patches of each image."""
        q, k, v = (layer(x).unflatten(1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return self.out_proj(attend_within(q, k, v, lengths).flatten(1))


class FeedForward(nn.Module):
    """fc2(gelu(fc1 x)), GELU exact or by tanh as `hidden_act` says."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.approximate = "none" if config.hidden_act == "gelu" else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        """(N, Dv) -> (N, Dv)."""
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)

    def blueprint(self) -> dict[str, Any]:
        """Weights by their part in a pre-norm block."""
        attention = self.self_attn
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        parts = {
            "norm1": self.layer_norm1, "out": attention.out_proj, "norm2": self.layer_norm2, "up": self.mlp.fc1,
            "down": self.mlp.fc2,
        }  # fmt: skip
        qkv = (torch.cat([layer.weight for layer in three]), torch.cat([layer.bias for layer in three]))
        return {"qkv": qkv} | {name: (part.weight, part.bias) for name, part in parts.items()}

    def forward(self, x: Tensor, turn: Rotation, lengths: Sequence[int]) -> Tensor:
        """(N, Dv) -> (N, Dv)."""
        x = x + self.self_attn(self.layer_norm1(x), turn, lengths)
        return x + self.mlp(self.layer_norm2(x))


class Layers(nn.Module):
    """The list of layers; a module of its own because of the published state-dict names."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class VisionModel(nn.Module):
    """Embeddings, layers and the last norm; a module of its own because of the published state-dict names."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class SigLIP2Encoder(nn.Module):
    """`VisionEncoder` of AndesVL 0.6B; `gradient_checkpointing` recomputes layers in the backward pass."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.config = config
        self.spec = VisionSpec(width=config.hidden_size, patch_size=config.patch_size, merge=config.hidden_stride)
        self.gradient_checkpointing = False
        self.vision_model = VisionModel(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights and position table normal with `initializer_range`, biases 0, norms 1 and 0."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)

    def blueprint(self) -> dict[str, Any]:
        """Structure and weights as plain data, for backends that compile encoders (`andes_numba.blueprint`)."""
        config, model = self.config, self.vision_model
        return {
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "norm": "layer",
            "eps": config.layer_norm_eps,
            "activation": "gelu" if config.hidden_act == "gelu" else "gelu_tanh",
            "rotary": None if config.disable_rope else config.rope_theta,
            "embed": (model.embeddings.proj.weight, model.embeddings.proj.bias),
            "positions": model.embeddings.positions if config.preserve_original_pe else None,
            "blocks": (layer.blueprint() for layer in model.encoder.layers),
            "last": (model.post_layernorm.weight, model.post_layernorm.bias),
        }

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) normalised pixels in block order, one (rows, columns) grid per image -> (N, Dv), same order.

        Raises:
            InputError: grids that do not add up to N, or a side that is no multiple of the merge.
        """
        config = self.config
        grids = [(h, w) for h, w in grids]
        lengths = [h * w for h, w in grids]
        _check(patches, grids, sum(lengths), config)
        x = self.vision_model.embeddings(patches, grids)
        if not grids:
            return x
        turn: Rotation = None
        if not config.disable_rope:
            turn = rotation(grids, config.head_dim, config.hidden_stride, config.rope_theta, x.device)
        for layer in self.vision_model.encoder.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, turn, lengths, use_reentrant=False)
            else:
                x = layer(x, turn, lengths)
        return self.vision_model.post_layernorm(x)


def _check(patches: Tensor, grids: Sequence[Grid], total: int, config: SigLIP2Config) -> None:
    pixels = config.num_channels * config.patch_size**2
    if tuple(patches.shape) != (total, pixels):
        raise InputError(
            f"patches of shape {tuple(patches.shape)} do not fit the grids {list(grids)}",
            who="siglip2",
            why=f"these grids stand for {total} patches of {pixels} values (patch size {config.patch_size})",
            fix="prepare the images with the patch size and merge of this encoder's spec",
        )
    if any(side % config.hidden_stride for grid in grids for side in grid):
        raise InputError(
            f"the grids {list(grids)} cannot be split into blocks",
            who="siglip2",
            fix=f"round both sides of each image to a multiple of {config.patch_size * config.hidden_stride} pixels",
        )
