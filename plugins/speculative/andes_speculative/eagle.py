"""Draft head `eagle3`: one decoder layer over (embedding of the next token, features of the target).

Source: EAGLE-3 (Li et al. 2025, arXiv 2503.01840). Rows that enter three layers of the target, near its start, middle
and end, are joined by one linear layer. Row i takes that feature of position i and the embedding of token i + 1, and
says which token comes at i + 2. To go further ahead it takes its own output in place of the feature; it was trained so.
The head knows `vocabulary` frequent tokens of the target's. Left out: trees that are expanded in several places at
once; further ways on are leaves beside the path that is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.functional import silu

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q (Hq, T, d), k and v (Hkv, T, d) of new rows, turned to their positions -> (T, Hq * d)."""


EPS = 1e-6
"""Of all norms."""


@frozen(kw_only=True)
class HeadShape:
    """What a head is built from.

    Attributes:
        width: D of the target. taps: its layers whose entering rows are the features.
        vocabulary: tokens that the head knows.
    """

    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    taps: tuple[int, ...]
    theta: float = 10_000.0


def taps_of(layers: int) -> tuple[int, int, int]:
    """Layers 2, L/2 and L - 3 of the paper; nearest ones where a small model has no such layers."""
    return min(2, layers), layers // 2, max(layers - 3, 0)


class Eagle3(nn.Module):
    """The head.

    Attributes:
        tokens: (vocabulary,) ids of the target's tokens that it knows, ascending; the first ones until they are chosen.
    """

    tokens: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        d, two = shape.width, 2 * shape.width
        self.fc = nn.Linear(len(shape.taps) * d, d, bias=False)
        self.norm_embed, self.norm_hidden = nn.RMSNorm(d, eps=EPS), nn.RMSNorm(d, eps=EPS)
        self.q = nn.Linear(two, shape.heads * shape.head_dim, bias=False)
        self.k = nn.Linear(two, shape.kv_heads * shape.head_dim, bias=False)
        self.v = nn.Linear(two, shape.kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(shape.heads * shape.head_dim, d, bias=False)
        self.norm_mlp, self.norm = nn.RMSNorm(d, eps=EPS), nn.RMSNorm(d, eps=EPS)
        self.gate = nn.Linear(d, shape.inner, bias=False)
        self.up = nn.Linear(d, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, d, bias=False)
        self.head = nn.Linear(d, shape.vocabulary, bias=False)
        self.register_buffer("tokens", torch.arange(shape.vocabulary))

    def joined(self, features: Tensor) -> Tensor:
        """(T, taps, D) rows of the target -> (T, D)."""
        joined: Tensor = self.fc(features.flatten(1))
        return joined

    def forward(self, embeds: Tensor, hidden: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """(T, D) embeddings of the next tokens, (T, D) features or own rows, (T,) positions -> own rows (T, D)."""
        both = torch.cat([self.norm_embed(embeds), self.norm_hidden(hidden)], dim=-1)  # (T, 2 D)
        q, k, v = (self._split(part(both)) for part in (self.q, self.k, self.v))
        q, k = (turned(x, positions, self.shape.theta) for x in (q, k))
        rows = hidden + self.o(attend(q, k, v))
        inside = self.norm_mlp(rows)
        out: Tensor = rows + self.down(silu(self.gate(inside)) * self.up(inside))
        return out

    def logits(self, rows: Tensor) -> Tensor:
        """(T, D) own rows -> (T, vocabulary)."""
        scores: Tensor = self.head(self.norm(rows))
        return scores

    def blueprint(self) -> dict[str, Any]:
        """What a backend needs to run it beside a model; see `running`."""
        layer = {**layer_plan(self), "norm": torch.ones(self.shape.width)}  # nobody reads it: `sides` come instead
        return {
            "join": self.fc.weight, "join_norm": None, "sides": (self.norm_embed.weight, self.norm_hidden.weight),
            "layers": [layer], "last": self.norm.weight, "head": self.head.weight, **plan_of(self.shape),
        }  # fmt: skip

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(len(rows), -1, self.shape.head_dim).transpose(0, 1)  # (heads, T, d)


def layer_plan(layer: Any) -> dict[str, Tensor]:
    """Matrices by role, and the weights of its norms."""
    weights = {role: getattr(layer, role).weight for role in ("q", "k", "v", "o", "gate", "up", "down", "norm_mlp")}
    return {**weights, "norm": layer.norm.weight}


def plan_of(shape: HeadShape) -> dict[str, Any]:
    """Sizes and constants of a plan."""
    heads = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    return {**heads, "theta": shape.theta, "eps": EPS}


def turned(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """(heads, T, d) rotated to (T,) positions (RoPE, Su et al. 2021, arXiv 2104.09864), halves as pairs."""
    half = x.shape[-1] // 2
    angles = positions[:, None].float() / theta ** (torch.arange(half, device=x.device) / half)  # (T, d/2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (Hq, T, d), k and v (Hkv, S, d), mask (T, S) True where a row may look -> (T, Hq * d)."""
    out = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, enable_gqa=q.shape[0] != k.shape[0]
    )
    return out[0].transpose(0, 1).flatten(1)


def unrolled(head: Eagle3, embeds: Tensor, features: Tensor, steps: int, first: int = 0) -> list[Tensor]:
    """Logits of one text as in drafting, `steps` tokens ahead of every row (training-time test of the paper).

    Args:
        embeds: (n, D) inputs of the target. features: (n, taps, D) of the same rows.
        first: rows before it are looked at, and say nothing themselves.

    Row i of step k has gone k tokens ahead of position i: it takes the embedding of token i + 1 + k, sees the feature
    rows up to i, and its own rows of the steps before. -> per step (n - 1 - k - first, vocabulary), the last rows left
    out, which would go beyond the text.
    """
    count = len(embeds) - 1
    hidden = head.joined(features[:count])
    causal = torch.ones(count, count, dtype=torch.bool, device=embeds.device).tril()
    keys: list[Tensor] = []
    values: list[Tensor] = []
    found = []
    for step in range(min(steps, count - first)):
        rows, start = count - step, first if step else 0

        def attend(q: Tensor, k: Tensor, v: Tensor, rows: int = rows, start: int = start) -> Tensor:
            keys.append(k)
            values.append(v)
            seen, said = ([x[0][:, :rows], *(y[:, : rows - first] for y in x[1:])] for x in (keys, values))
            return _ahead(q, seen, said, causal[start:rows, :rows])

        positions = torch.arange(step + start, step + rows, device=embeds.device)
        hidden = head(embeds[1 + step + start :], hidden[: rows - start], positions, attend)
        hidden = hidden if step else hidden[first:]
        found.append(head.logits(hidden))
    return found


def _ahead(q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], causal: Tensor) -> Tensor:
    """Row i of q (Hq, T, d) sees of the first keys (Hkv, S, d) what `causal` (T, S) says, and row i of the others."""
    group = q.shape[0] // keys[0].shape[0]
    keys, values = ([x.repeat_interleave(group, dim=0) for x in some] for some in (keys, values))
    scale = q.shape[-1] ** -0.5
    first = (q @ keys[0].transpose(1, 2) * scale).masked_fill(~causal, -torch.inf)  # (Hq, T, S)
    own = [(q * k).sum(-1, keepdim=True) * scale for k in keys[1:]]  # (Hq, T, 1) each
    weights = torch.cat([first, *own], dim=-1).softmax(-1)
    out = weights[..., : first.shape[-1]] @ values[0]
    for n, v in enumerate(values[1:]):
        out = out + weights[..., first.shape[-1] + n, None] * v
    return out.transpose(0, 1).flatten(1)


def shape_for(text: Any, vocabulary: int) -> HeadShape:
    """A head that fits a target, by its `TextSpec`: its attention, and an inner width of three times its own."""
    return HeadShape(
        width=text.width, inner=3 * text.width, heads=text.query_heads, kv_heads=text.kv_heads, head_dim=text.head_dim,
        vocabulary=min(vocabulary, text.vocab_size), taps=taps_of(text.layers),
    )  # fmt: skip
