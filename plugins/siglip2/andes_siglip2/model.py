"""SigLIP2 at native resolution: the vision encoder of AndesVL 0.6B.

Papers: SigLIP 2 (arXiv 2502.14786), NaViT packing (arXiv 2307.06304), AndesVL report (arXiv 2510.11496).
Kept from the published AndesVL evaluation code: state-dict names, the patch embedding as a linear layer, the learned
position table sampled bicubically for each image, 2-D rotary positions. The activation follows `hidden_act` (the
published configuration names the tanh approximation, that code computes the exact GELU). Left out: the pooling head,
which AndesVL does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from andes_aimv2.native import NativeEncoder, Rotation, add_positions, attend_within, rotate
from torch import Tensor, nn

from andes_sdk.inputs.patches import block_order
from andes_sdk.types import Grid, VisionSpec

from .config import SigLIP2Config


class Embeddings(nn.Module):
    """A linear layer over flattened patches plus the learned position table, sampled for each image's grid."""

    def __init__(self, config: SigLIP2Config) -> None:
        super().__init__()
        self.config = config
        self.proj = nn.Linear(config.num_channels * config.patch_size**2, config.hidden_size)
        if config.preserve_original_pe:
            self.pos_embed = nn.Embedding(config.num_patches, config.hidden_size)

    def table(self) -> Tensor | None:
        """(side, side, Dv) float32: what `positions` resizes bicubically; None without one."""
        if not self.config.preserve_original_pe:
            return None
        return self.pos_embed.weight.detach().float().unflatten(0, (self.config.table_side, -1))

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
        return add_positions(x, grids, self.positions)


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


class SigLIP2Encoder(NativeEncoder):
    """`VisionEncoder` of AndesVL 0.6B; `gradient_checkpointing` recomputes layers in the backward pass."""

    config: SigLIP2Config

    def __init__(self, config: SigLIP2Config) -> None:
        spec = VisionSpec(width=config.hidden_size, patch_size=config.patch_size, merge=config.hidden_stride)
        super().__init__(config, spec)
        self.vision_model = VisionModel(config)
        self.reset_parameters()

    def parts(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        """Embedding, layers, last norm."""
        model = self.vision_model
        return model.embeddings, model.encoder.layers, model.post_layernorm

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
            "table": model.embeddings.table(),
            "blocks": (cast(Layer, layer).blueprint() for layer in model.encoder.layers),
            "last": (model.post_layernorm.weight, model.post_layernorm.bias),
        }
