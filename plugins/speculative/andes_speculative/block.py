"""Draft head `block`: all tokens of a block are guessed in one pass, with a confidence that cuts the guess short.

Source: DFlash (arXiv 2602.06036): rows that enter some layers of the target are joined by one linear layer, and every
layer of the head reads keys and values of them beside those of its own rows. A block is the last token and `block` - 1
marks, which all see one another. Row j says which token comes j + 1 places behind the last one. The confidence follows
DSpark (arXiv 2607.05147): how likely row j is right where the rows before it are. Left out: the target's own head and
embedding are not shared; the head knows `vocabulary` frequent tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.nn.functional import silu

from .eagle import EPS, HeadShape, layer_plan, plan_of, turned

See = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, q (Hq, T, d), k and v (Hkv, T, d) of the block's rows, turned to their positions -> (T, Hq * d)."""


@frozen(kw_only=True)
class BlockShape(HeadShape):
    """As `HeadShape`, and: tokens guessed in one pass, decoder layers."""

    block: int
    layers: int = 1


class Layer(nn.Module):
    """One decoder layer; keys and values are also made of the target's features."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        d, self.head_dim, self.theta = shape.width, shape.head_dim, shape.theta
        self.norm, self.norm_mlp = nn.RMSNorm(d, eps=EPS), nn.RMSNorm(d, eps=EPS)
        self.q = nn.Linear(d, shape.heads * shape.head_dim, bias=False)
        self.k = nn.Linear(d, shape.kv_heads * shape.head_dim, bias=False)
        self.v = nn.Linear(d, shape.kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(shape.heads * shape.head_dim, d, bias=False)
        self.gate = nn.Linear(d, shape.inner, bias=False)
        self.up = nn.Linear(d, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, d, bias=False)

    def split(self, rows: Tensor) -> Tensor:
        """(T, heads * d) -> (heads, T, d)."""
        return rows.reshape(len(rows), -1, self.head_dim).transpose(0, 1)

    def keys(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) normed rows at (T,) positions -> keys and values (Hkv, T, d)."""
        return turned(self.split(self.k(rows)), positions, self.theta), self.split(self.v(rows))

    def forward(self, rows: Tensor, positions: Tensor, see: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """(T, D) -> (T, D)."""
        inside = self.norm(rows)
        q = turned(self.split(self.q(inside)), positions, self.theta)
        rows = rows + self.o(see(q, *self.keys(inside, positions)))
        inside = self.norm_mlp(rows)
        out: Tensor = rows + self.down(silu(self.gate(inside)) * self.up(inside))
        return out


class Block(nn.Module):
    """The head.

    Attributes:
        tokens: (vocabulary,) ids of the target's tokens that it knows, ascending; the first ones until they are chosen.
    """

    tokens: Tensor

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        d = shape.width
        self.fc, self.norm_features = nn.Linear(len(shape.taps) * d, d, bias=False), nn.RMSNorm(d, eps=EPS)
        self.mark = nn.Parameter(torch.zeros(d))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(d, eps=EPS)
        self.head = nn.Linear(d, shape.vocabulary, bias=False)
        self.trust = nn.Linear(d, 1)
        self.register_buffer("tokens", torch.arange(shape.vocabulary))

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(T, taps, D) rows of the target at (T,) positions -> keys and values (Hkv, T, d) of each layer."""
        rows = self.norm_features(self.fc(features.flatten(1)))
        return [layer.keys(rows, positions) for layer in self.layers]  # type: ignore[operator]

    def entering(self, anchors: Tensor) -> Tensor:
        """(A, D) embeddings of last tokens -> blocks (A, block, D) of them and marks."""
        count, d = anchors.shape
        return torch.cat([anchors[:, None], self.mark.expand(count, self.shape.block - 1, d)], dim=1)

    def normed(self, rows: Tensor, positions: Tensor, see: See) -> Tensor:
        """(A * block, D) blocks that begin at (A,) positions -> rows (A * block, D) behind the last norm."""
        size = len(rows) // len(positions)
        where = (positions[:, None] + torch.arange(size, device=positions.device)).flatten()
        for n, layer in enumerate(self.layers):
            rows = layer(rows, where, lambda q, k, v, n=n: see(n, q, k, v))
        out: Tensor = self.norm(rows)
        return out

    def forward(self, anchors: Tensor, positions: Tensor, see: See) -> tuple[Tensor, Tensor]:
        """(A, D) embeddings of last tokens at (A,) positions -> logits (A, block, vocabulary), confidence (A, block).

        The confidence is a logit. Rows of a block follow one another in what `see` gets.
        """
        count, size = len(anchors), self.shape.block
        rows = self.normed(self.entering(anchors).flatten(0, 1), positions, see)
        return self.head(rows).view(count, size, -1), self.trust(rows).view(count, size)

    def blueprint(self) -> dict[str, Any]:
        """What a backend needs to run it beside a model; see `running`."""
        return {
            "join": self.fc.weight, "join_norm": self.norm_features.weight, "sides": None,
            "layers": [layer_plan(one) for one in self.layers], "last": self.norm.weight, "head": self.head.weight,
            **plan_of(self.shape),
        }  # fmt: skip


def blocks(head: Block, embeds: Tensor, features: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The head on many blocks of one text, each as in drafting.

    Args:
        embeds: (n, D) inputs of the target. features: (n, taps, D) of the same rows. anchors: (A,) rows that a block
            begins at: it sees features of the rows before.
    """
    size, group = head.shape.block, head.shape.heads // head.shape.kv_heads
    places = torch.arange(len(embeds), device=embeds.device)
    context = head.context(features, places)
    hidden = places >= anchors[:, None]  # (A, n)

    def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (x.repeat_interleave(group, dim=0) for x in context[layer])  # (Hq, n, d)
        q, k, v = (x.unflatten(1, (-1, size)) for x in (q, *(y.repeat_interleave(group, dim=0) for y in (k, v))))
        scale = q.shape[-1] ** -0.5
        before = torch.einsum("habd,hnd->habn", q, keys) * scale
        before = before.masked_fill(hidden[None, :, None], -torch.inf)
        own = torch.einsum("habd,hacd->habc", q, k) * scale
        weights = torch.cat([before, own], dim=-1).softmax(-1)
        out = torch.einsum("habn,hnd->habd", weights[..., : len(places)], values)
        out = out + torch.einsum("habc,hacd->habd", weights[..., len(places) :], v)
        return out.flatten(1, 2).transpose(0, 1).flatten(1)

    found: tuple[Tensor, Tensor] = head(embeds[anchors], anchors, see)
    return found


def spread_out(rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, evenly."""
    return [rows[n * len(rows) // most] for n in range(most)] if len(rows) > most else list(rows)
