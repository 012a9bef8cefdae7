"""Linear layers of a decoder layer, what they do, and what a decoder is made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROLES = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
"""Name inside a layer -> role."""


def linears_of(layers: int) -> dict[str, tuple[int, str]]:
    """Module name -> (layer, role), of all layers."""
    return {f"model.layers.{n}.{place}": (n, role) for n in range(layers) for place, role in ROLES.items()}


def blueprint_of(config: Any, body: Any) -> dict[str, Any]:
    """Structure of a Llama, a Qwen2 or a Qwen3 as plain data (`andes_numba.weights.DecoderPlan`)."""
    first, rotary = body.layers[0], body.rotary_emb

    def tables(positions: Tensor) -> tuple[Tensor, ...]:
        both = rotary(torch.zeros(1, dtype=torch.float32), positions[None])
        return tuple(t[0, :, : t.shape[-1] // 2] for t in both)

    return {
        "inner": config.intermediate_size,
        "eps": config.rms_norm_eps,
        "activation": config.hidden_act,
        "biased": [name for name, part in first.named_modules() if getattr(part, "bias", None) is not None],
        "head_norms": hasattr(first.self_attn, "q_norm"),
        "scale": config.head_dim**-0.5,
        "rotary": None if rotary.rope_type in ("dynamic", "longrope") else tables,
    }
