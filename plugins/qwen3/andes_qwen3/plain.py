"""Qwen3 in plain torch, for models whose weights stay in a packed file: importing transformers takes seconds.

Names of weights are those of transformers, and so is the arithmetic: tests compare the bits. Rotary positions of other
kinds than the default one, training and `generate` of transformers are left to `model.Qwen3LanguageModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from andes_sdk.types import Attend, Tap, TextSpec

from .roles import blueprint_of, linears_of


def fits(fields: Mapping[str, Any]) -> bool:
    """Whether this module computes a configuration (`configuration.resolve`)."""
    return fields["rope_parameters"].get("rope_type") == "default" and fields["hidden_act"] == "silu"


class Norm(nn.Module):
    """RMSNorm, computed in float32 and weighted in the input's type."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions; the frequencies follow from the configuration and are no weights."""

    rope_type = "default"

    def __init__(self, head: int, theta: float) -> None:
        super().__init__()
        self.head, self.theta = head, theta

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(…, T) positions -> cosines and sines (…, T, d), in the type of `x`."""
        steps = torch.arange(0, self.head, 2, dtype=torch.float, device=x.device)
        angles = positions[..., None].float() * (1.0 / (self.theta ** (steps / self.head)))
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(1, H, T, d) rotated by (T, d)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos) + (torch.cat((-second, first), dim=-1) * sin)


class Attention(nn.Module):
    """Projections, norms of heads and rotary positions around the runtime's attention."""

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.layer, self.head = layer, c.head_dim
        wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, wide, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, narrow, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, narrow, bias=c.attention_bias)
        self.o_proj = nn.Linear(wide, c.hidden_size, bias=c.attention_bias)
        self.q_norm = Norm(c.head_dim, c.rms_norm_eps)
        self.k_norm = Norm(c.head_dim, c.rms_norm_eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        q, k, v = (layer(x).unflatten(-1, (-1, self.head)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (turned(part.transpose(1, 2), *turn) for part in (self.q_norm(q), self.k_norm(k)))
        out = attend(self.layer, q, k, v.transpose(1, 2), self.head**-0.5)  # (1, T, Hq, d)
        return cast(Tensor, self.o_proj(out.flatten(2).contiguous()))


class FeedForward(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        return cast(Tensor, self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(c, layer)
        self.mlp = FeedForward(c)
        self.input_layernorm = Norm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = Norm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        x = x + self.self_attn(self.input_layernorm(x), turn, attend)
        return x + cast(Tensor, self.mlp(self.post_attention_layernorm(x)))


class Body(nn.Module):
    """Embedding, layers and the last norm; a module of its own because of the published names."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, n) for n in range(c.num_hidden_layers))
        self.norm = Norm(c.hidden_size, c.rms_norm_eps)
        self.rotary_emb = Rotary(c.head_dim, c.rope_parameters["rope_theta"])


class PlainQwen3(nn.Module):
    """A Qwen3 as `andes_sdk.types.LanguageModel`, without transformers."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{"model_type": "qwen3", **fields})
        self.model = Body(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head the embedding, where the configuration says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.lm_head.weight is self.model.embed_tokens.weight

    @property
    def spec(self) -> TextSpec:
        """Sizes, read from the configuration."""
        c = self.config
        return TextSpec(
            width=c.hidden_size,
            vocab_size=c.vocab_size,
            layers=c.num_hidden_layers,
            query_heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            max_positions=c.max_position_embeddings,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""
        return cast(Tensor, self.model.embed_tokens(ids))

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm. `tap` sees what enters each layer."""
        x = embeds[None]
        turn = self.model.rotary_emb(x, positions)
        for number, layer in enumerate(self.model.layers):
            if tap is not None:
                tap(number, x[0])
            x = layer(x, turn, attend)
        if tap is not None:
            tap(len(self.model.layers), x[0])
        return cast(Tensor, self.model.norm(x)[0])

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        return linears_of(self.config.num_hidden_layers)

    def blueprint(self) -> dict[str, Any]:
        """Structure as plain data, for backends that compile decoders (`andes_numba.weights.DecoderPlan`)."""
        return blueprint_of(self.config, self.model)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        return cast(Tensor, self.lm_head(hidden))
