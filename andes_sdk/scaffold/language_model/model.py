"""A pre-norm decoder with rotary positions and grouped KV heads.

Masks, packing and the KV store belong to the runtime: a layer hands q, k and v to `attend` and rows meet nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from andes_sdk.errors import ConfigError
from andes_sdk.types import Attend, Tap, TextSpec

HEAD = 16


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(heads, T, d) turned by (T, d / 2) angles (Su et al. 2021); feature i turns with i + d/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Layer(nn.Module):
    """Attention, then a gated feed-forward, each on normalised rows and added to them."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.q = nn.Linear(width, heads * HEAD, bias=False)
        self.k = nn.Linear(width, kv_heads * HEAD, bias=False)
        self.v = nn.Linear(width, kv_heads * HEAD, bias=False)
        self.out = nn.Linear(heads * HEAD, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor, index: int, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """(T, D) -> (T, D)."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, HEAD)).transpose(0, 1) for layer in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # (heads, T, d)
        mixed = attend(index, q[None], k[None], v[None], HEAD**-0.5)  # (1, T, Hq, d)
        x = x + self.out(mixed[0].flatten(1))
        y = self.norm2(x)
        rows: Tensor = x + self.down(silu(self.gate(y)) * self.up(y))
        return rows


class Decoder(nn.Module):
    """See `andes_sdk.types.LanguageModel`.

    Raises:
        ConfigError: an odd number of heads cannot share KV heads two by two.
    """

    def __init__(self, vocab_size: int, layers: int, heads: int, max_positions: int) -> None:
        super().__init__()
        if heads % 2:
            raise ConfigError(f"{heads} heads cannot share KV heads in pairs", who="example", fix="use an even number")
        self.spec = TextSpec(
            width=heads * HEAD,
            vocab_size=vocab_size,
            layers=layers,
            query_heads=heads,
            kv_heads=heads // 2,
            head_dim=HEAD,
            max_positions=max_positions,
        )
        self.tokens = nn.Embedding(vocab_size, self.spec.width)
        self.layers = nn.ModuleList(Layer(self.spec.width, heads, heads // 2) for _ in range(layers))
        self.norm = nn.RMSNorm(self.spec.width, eps=1e-6)
        self.head = nn.Linear(self.spec.width, vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, D)."""
        rows: Tensor = self.tokens(ids)
        return rows

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) at (T,) positions -> (T, D). `tap` sees what enters each layer."""
        # angles in float32 whatever the weights are: a bfloat16 position is wrong beyond 256
        steps = torch.arange(HEAD // 2, device=embeds.device, dtype=torch.float32)
        angles = positions.float()[:, None] * 10_000.0 ** (-2 * steps / HEAD)  # (T, d / 2)
        cos, sin = angles.cos().to(embeds.dtype), angles.sin().to(embeds.dtype)
        x = embeds
        for index, layer in enumerate(self.layers):
            if tap is not None:
                tap(index, x)
            x = layer(x, index, cos, sin, attend)
        if tap is not None:
            tap(len(self.layers), x)
        normed: Tensor = self.norm(x)
        return normed

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        roles = {"q": "q", "k": "k", "v": "v", "out": "o", "gate": "gate", "up": "up", "down": "down"}
        return {f"layers.{n}.{name}": (n, role) for n in range(len(self.layers)) for name, role in roles.items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        scores: Tensor = self.head(hidden)
        return scores
