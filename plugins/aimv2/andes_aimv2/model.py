"""AIMv2 at native resolution: the vision encoder of AndesVL 1B, 2B and 4B.

Papers: AIMv2 (arXiv 2411.14402), NaViT packing (arXiv 2307.06304), AndesVL report (arXiv 2510.11496).
Kept from the published AndesVL evaluation code: state-dict names, the learned position table resized to each image,
2-D rotary positions, SwiGLU, pre-norm RMSNorm. Left out: window attention, which the published models have switched
off, and dropout, which is zero in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andes_sdk.inputs.patches import block_order
from andes_sdk.types import Grid, VisionSpec

from .config import AimV2Config
from .native import NativeEncoder, Rotation, add_positions, attend_within, rotate

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class RMSNorm(nn.RMSNorm):
    """RMSNorm in its input's type, also under autocast (where float32 weights would leave the fused kernel)."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, Dv) -> (…, Dv)."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class PatchEmbed(nn.Module):
    """A convolution's weight used as a linear layer over flattened patches, then RMSNorm."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, 3*p*p) -> (N, Dv), in the weights' type."""
        return self.norm(F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias))


class Preprocessor(nn.Module):
    """Patch embedding plus the learned position table, resized to each image's grid."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        self.config = config
        self.patchifier = PatchEmbed(config)
        if config.preserve_original_pe:
            self.pos_embed = nn.Parameter(torch.empty(1, config.table_side**2, config.hidden_size))

    def table(self) -> Tensor | None:
        """(side, side, Dv) float32: what `positions` resizes bicubically; None where it does something else."""
        config = self.config
        if not config.preserve_original_pe or config.interpolate_pe_method != "two_dim":
            return None
        return self.pos_embed.detach().float()[0].unflatten(0, (config.table_side, -1))

    def positions(self, h: int, w: int) -> Tensor:
        """(h*w, Dv) in block order; interpolated in float32 whatever the table's type."""
        table = self.pos_embed.float().transpose(1, 2)  # (1, Dv, side*side)
        if self.config.interpolate_pe_method == "two_dim":
            table = table.unflatten(2, (self.config.table_side, -1))
            table = F.interpolate(table, size=(h, w), mode="bicubic", align_corners=False)
        else:
            table = F.interpolate(table, size=h * w, mode="linear", align_corners=False).unflatten(2, (h, w))
        return block_order(table[0].permute(1, 2, 0), self.config.hidden_stride)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) -> (N, Dv)."""
        x = self.patchifier(patches)
        if not self.config.preserve_original_pe or not grids:
            return x
        return add_positions(x, grids, self.positions)


class Attention(nn.Module):
    """Fused qkv, rotary positions, attention inside each image."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.use_bias)

    def forward(self, x: Tensor, turn: Rotation, lengths: Sequence[int]) -> Tensor:
        """(N, Dv) -> (N, Dv); `lengths` are the patches of each image."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.heads, -1)).unbind(1)  # (N, H, d) each
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        return self.proj(attend_within(q, k, v, lengths).flatten(1))


class SwiGLU(nn.Module):
    """fc2(silu(fc1 x) * fc3 x)."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.fc1 = nn.Linear(width, inner, bias=config.use_bias)
        self.fc2 = nn.Linear(inner, width, bias=config.use_bias)
        self.fc3 = nn.Linear(width, inner, bias=config.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, Dv) -> (N, Dv)."""
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Block(nn.Module):
    """Pre-norm attention and SwiGLU, each added to its input."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.norm_1 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = SwiGLU(config)
        self.norm_2 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def blueprint(self) -> dict[str, Any]:
        """Weights by their part in a pre-norm block."""
        layers = {
            "qkv": self.attn.qkv, "out": self.attn.proj, "gate": self.mlp.fc1, "up": self.mlp.fc3, "down": self.mlp.fc2,
        }  # fmt: skip
        norms = {"norm1": (self.norm_1.weight, None), "norm2": (self.norm_2.weight, None)}
        return norms | {name: (layer.weight, layer.bias) for name, layer in layers.items()}

    def forward(self, x: Tensor, turn: Rotation, lengths: Sequence[int]) -> Tensor:
        """(N, Dv) -> (N, Dv)."""
        x = x + self.attn(self.norm_1(x), turn, lengths)
        return x + self.mlp(self.norm_2(x))


class Trunk(nn.Module):
    """The blocks and the last norm; a module of its own because of the published state-dict names."""

    def __init__(self, config: AimV2Config) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.post_trunk_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class AimV2Encoder(NativeEncoder):
    """`VisionEncoder` of AndesVL 1B, 2B and 4B; `gradient_checkpointing` recomputes blocks in the backward pass."""

    config: AimV2Config

    def __init__(self, config: AimV2Config) -> None:
        spec = VisionSpec(
            width=config.hidden_size,
            patch_size=config.patch_size,
            merge=config.hidden_stride,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )
        super().__init__(config, spec)
        self.preprocessor = Preprocessor(config)
        self.trunk = Trunk(config)
        self.reset_parameters()

    def parts(self) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        """Embedding, blocks, last norm."""
        return self.preprocessor, self.trunk.blocks, self.trunk.post_trunk_norm

    def reset_parameters(self) -> None:
        """Weights and position table normal with `initializer_range`, biases 0, norms 1."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.preserve_original_pe:
            nn.init.normal_(self.preprocessor.pos_embed, std=std)

    def blueprint(self) -> dict[str, Any]:
        """Structure and weights as plain data, for backends that compile encoders (`andes_numba.blueprint`)."""
        config, embed = self.config, self.preprocessor.patchifier
        return {
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "norm": "rms",
            "eps": config.rms_norm_eps,
            "activation": "swiglu",
            "rotary": None if config.disable_rope else config.rope_theta,
            "embed": (embed.proj.weight.flatten(1), embed.proj.bias),
            "embed_norm": (embed.norm.weight, None),
            "positions": self.preprocessor.positions if config.preserve_original_pe else None,
            "table": self.preprocessor.table(),
            "blocks": (cast(Block, block).blueprint() for block in self.trunk.blocks),
            "last": (self.trunk.post_trunk_norm.weight, None),
        }
