"""Torch modules of static shape, in the order of operations of the integer reference. Nothing of ours is imported.

Each arithmetic step that has a range of its own is a module with a name, so that the written file names it too.

Decoder, layout "npu": the cache's rows, masks, cosines and sines are inputs; new rows of the cache are outputs.
Layout "cpu": positions come in, and the cache is written inside the graph, as LiteRT-LM's CPU executor wants it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Plan = Mapping[str, Any]
Weights = Mapping[str, Tensor]

MASKED = -100.0
"""What hides a row. Under int16 activations -1e4 would cost ten times the accuracy."""


class Add(nn.Module):
    """A sum."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a + b."""
        return a + b


class Mul(nn.Module):
    """A product of elements."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a * b."""
        return a * b


class Scores(nn.Module):
    """Queries times keys."""

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """(..., T, d) and (..., C, d) -> (..., T, C)."""
        return torch.matmul(q, k.transpose(2, 3))


class Softmax(nn.Module):
    """Over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        return F.softmax(x, -1)


class Linear(nn.Module):
    """A matrix of the weights, dequantised, and its bias."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights[name + ".weight"], requires_grad=False)
        bias = weights.get(name + ".bias")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """An RMS norm, or a layer norm where there is a bias."""

    def __init__(self, weights: Weights, name: str, eps: float, kind: str = "rms") -> None:
        super().__init__()
        self.weight = nn.Parameter(weights[name + ".weight"], requires_grad=False)
        bias = weights.get(name + ".bias")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.eps, self.kind = eps, kind

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        if self.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return x if self.bias is None else x + self.bias


Low = Mapping[str, tuple[Tensor, Tensor]]
"""By role (q, k, v, o): an adapter's A (in, R) and B (R, out), its scale in B."""


def low_rank(lora: Mapping[str, Tensor] | None, n: int) -> Low:
    """An adapter's pairs for a layer, from the inputs of a graph."""
    if lora is None:
        return {}
    return {r: (lora[f"atten_{r}_a_prime_weight_{n}"], lora[f"atten_{r}_b_prime_weight_{n}"]) for r in "qkvo"}


def adapted(x: Tensor, linear: Linear, pair: tuple[Tensor, Tensor] | None) -> Tensor:
    """A matrix, and what an adapter adds."""
    y: Tensor = linear(x)
    return y if pair is None else y + torch.matmul(torch.matmul(x, pair[0]), pair[1])


def activation(name: str, up: Tensor, gate: Tensor | None = None) -> Tensor:
    """What stands between two matrices of a block; "swiglu" takes two."""
    if name == "swiglu":
        assert gate is not None
        return F.silu(gate) * up
    return F.gelu(up, approximate="tanh" if name == "gelu_tanh" else "none")


class Turn(nn.Module):
    """A rotary embedding: feature i turns with feature i + d / 2."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (1, H, T, d); cos, sin (1, 1, T, d), both halves alike."""
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Layer(nn.Module):
    """A pre-norm decoder layer with grouped queries."""

    def __init__(self, plan: Plan, weights: Weights, n: int) -> None:
        super().__init__()
        at = f"model.layers.{n}."
        self.heads, self.kv, self.head, self.scale = plan["query_heads"], plan["kv_heads"], plan["head"], plan["scale"]
        eps = plan["eps"]
        self.norm1 = Norm(weights, at + "input_layernorm", eps)
        self.norm2 = Norm(weights, at + "post_attention_layernorm", eps)
        self.q_norm = Norm(weights, at + "self_attn.q_norm", eps) if plan["head_norms"] else nn.Identity()
        self.k_norm = Norm(weights, at + "self_attn.k_norm", eps) if plan["head_norms"] else nn.Identity()
        self.q, self.k, self.v, self.o = (Linear(weights, f"{at}self_attn.{r}_proj") for r in "qkvo")
        self.gate, self.up, self.down = (Linear(weights, f"{at}mlp.{r}_proj") for r in ("gate", "up", "down"))
        self.turn_q, self.turn_k, self.scores, self.softmax = Turn(), Turn(), Scores(), Softmax()
        self.add1, self.add2 = Add(), Add()

    def rows(self, x: Tensor, cos: Tensor, sin: Tensor, low: Low) -> tuple[Tensor, Tensor, Tensor]:
        """(1, T, D) -> queries (1, Hq, T, d), keys (1, Hkv, T, d), values (1, Hkv, d, T)."""
        t, h = x.shape[1], self.norm1(x)
        q = self.q_norm(adapted(h, self.q, low.get("q")).reshape(1, t, self.heads, self.head)).permute(0, 2, 1, 3)
        k = self.k_norm(adapted(h, self.k, low.get("k")).reshape(1, t, self.kv, self.head)).permute(0, 2, 1, 3)
        v = adapted(h, self.v, low.get("v")).reshape(1, t, self.kv, self.head).permute(0, 2, 3, 1)
        return self.turn_q(q, cos, sin), self.turn_k(k, cos, sin), v

    def grouped(self, q: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Queries that share a KV head one under another, scaled, and the mask for them."""
        t, share = q.shape[2], self.heads // self.kv
        return q.reshape(1, self.kv, share * t, self.head) * self.scale, torch.cat([mask] * share, -2)

    def finish(self, x: Tensor, mixed: Tensor, low: Low) -> Tensor:
        """Attention's (1, Hkv, share * T, d) added to x, then the second half of the layer."""
        t = x.shape[1]
        mixed = mixed.reshape(1, self.heads, t, self.head).permute(0, 2, 1, 3).reshape(1, t, self.heads * self.head)
        x = self.add1(x, adapted(mixed, self.o, low.get("o")))
        h = self.norm2(x)
        return self.add2(x, self.down(activation("swiglu", self.up(h), self.gate(h))))

    def outside(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys: Tensor, values: Tensor, low: Low
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache is an input: -> rows, and the new rows of the cache."""
        q, k, v = self.rows(x, cos, sin, low)
        grouped, wide = self.grouped(q, mask)
        there = torch.cat([torch.matmul(grouped, keys.transpose(2, 3)), torch.matmul(grouped, k.transpose(2, 3))], -1)
        p, rows = self.softmax(there + wide), keys.shape[2]
        mixed = torch.matmul(p[..., :rows], values.transpose(2, 3)) + torch.matmul(p[..., rows:], v.transpose(2, 3))
        return self.finish(x, mixed, low), k, v

    def inside(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        first: Tensor,
        put: Any,
        low: Low,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache is written in the graph, from row `first` on: -> rows, and the whole cache."""
        q, k, v = self.rows(x, cos, sin, low)
        grouped, wide = self.grouped(q, mask)
        zero = torch.zeros((), dtype=torch.int32)
        keys, values = put(keys, k, [zero, zero, first, zero]), put(values, v, [zero, zero, zero, first])
        p = self.softmax(self.scores(grouped, keys) + wide)
        return self.finish(x, torch.matmul(p, values.transpose(2, 3)), low), keys, values


class Decoder(nn.Module):
    """Layers, last norm and head."""

    layers: Any

    def __init__(self, plan: Plan, weights: Weights) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(plan, weights, n) for n in range(plan["layers"]))
        self.norm = Norm(weights, "model.norm", plan["eps"])
        self.head = Linear(weights, "lm_head")

    def logits(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, V)."""
        return self.head(self.norm(x))


class Outside(nn.Module):
    """A signature of the layout "npu"."""

    def __init__(self, body: Decoder, logits: bool) -> None:
        super().__init__()
        self.body, self.wanted = body, logits

    def forward(
        self,
        embeddings: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        kv: dict[str, Tensor],
        lora: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """(1, T, D), tables (1, 1, T, d), mask (1, 1, T, C + T), cache -> new rows of the cache, logits."""
        x, out = embeddings, {}
        for n, layer in enumerate(self.body.layers):
            low = low_rank(lora, n)
            x, k, v = layer.outside(x, cos, sin, mask, kv[f"cache_k_{n}"], kv[f"cache_v_{n}"], low)
            out[f"kv_slice_k_{n}"], out[f"kv_slice_v_{n}"] = k, v
        if self.wanted:
            out["logits"] = self.body.logits(x)
        return out


class Inside(nn.Module):
    """A signature of the layout "cpu"."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, body: Decoder, logits: bool, tables: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.body, self.wanted = body, logits
        self.register_buffer("cosines", tables[0])
        self.register_buffer("sines", tables[1])

    def forward(
        self,
        embeddings: Tensor,
        input_pos: Tensor,
        mask: Tensor,
        kv: dict[str, Tensor],
        lora: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """(1, T, D), positions (T,), mask (1, 1, T, C), cache -> cache, logits."""
        from litert_torch.generative.custom_ops.dynamic_update_slice import dynamic_update_slice as put

        cos, sin = (torch.index_select(t, 0, input_pos)[None, None] for t in (self.cosines, self.sines))
        x, out = embeddings, {}
        for n, layer in enumerate(self.body.layers):
            keys, values = kv[f"cache_k_{n}"], kv[f"cache_v_{n}"]
            x, keys, values = layer.inside(x, cos, sin, mask, keys, values, input_pos[0], put, low_rank(lora, n))
            out[f"kv_cache_k_{n}"], out[f"kv_cache_v_{n}"] = keys, values
        if self.wanted:
            out["logits"] = self.body.logits(x)
        return out


class Embedder(nn.Module):
    """Rows of the embedding; ids below 0 stand for pictures, whose rows the runtime brings."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)

    def forward(self, token_ids: Tensor) -> dict[str, Tensor]:
        """(1, T) -> (1, T, D)."""
        return {"embeddings": self.table(torch.clamp(token_ids, min=0))}


class Block(nn.Module):
    """A pre-norm block of an encoder, with full attention."""

    def __init__(self, plan: Plan, weights: Weights, n: int) -> None:
        super().__init__()
        at, eps, kind = f"blocks.{n}.", plan["eps"], plan["norm"]
        self.heads, self.act = plan["heads"], plan["activation"]
        self.norm1, self.norm2 = (Norm(weights, at + name, eps, kind) for name in ("norm1", "norm2"))
        self.qkv, self.out, self.up, self.down = (Linear(weights, at + r) for r in ("qkv", "out", "up", "down"))
        self.gate = Linear(weights, at + "gate") if at + "gate.weight" in weights else None
        self.turn_q, self.turn_k, self.softmax, self.add1, self.add2 = Turn(), Turn(), Softmax(), Add(), Add()

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """(1, N, D) -> (1, N, D); `mask` (1, 1, 1, N) hides patches."""
        _, n, d = x.shape
        head = d // self.heads
        parts = self.qkv(self.norm1(x)).split(d, -1)
        q, k, v = (p.reshape(1, n, self.heads, head).permute(0, 2, 1, 3) for p in parts)
        if cos is not None and sin is not None:
            q, k = self.turn_q(q, cos, sin), self.turn_k(k, cos, sin)
        scores = torch.matmul(q * head**-0.5, k.transpose(2, 3))
        p = self.softmax(scores if mask is None else scores + mask)
        x = self.add1(x, self.out(torch.matmul(p, v).permute(0, 2, 1, 3).reshape(1, n, d)))
        h = self.norm2(x)
        gate = None if self.gate is None else self.gate(h)
        return self.add2(x, self.down(activation(self.act, self.up(h), gate)))


class Encoder(nn.Module):
    """One size of picture -> features of its patches in raster order."""

    factor: Tensor
    shift: Tensor
    positions: Tensor | None
    cos: Tensor | None
    sin: Tensor | None

    def __init__(self, plan: Plan, weights: Weights, rows: int, columns: int) -> None:
        super().__init__()
        self.grid, self.patch = (rows, columns), plan["patch"]
        # pixels in [0, 1] times this, plus that: the normalisation that the model was trained with
        mean, std = torch.tensor(plan["mean"]), torch.tensor(plan["std"])
        self.register_buffer("factor", 1 / std)
        self.register_buffer("shift", -mean / std)
        self.embed = Linear(weights, "embed")
        has_norm = "embed_norm.weight" in weights
        self.embed_norm = Norm(weights, "embed_norm", plan["eps"], plan["norm"]) if has_norm else nn.Identity()
        for name in ("positions", "cos", "sin"):
            self.register_buffer(name, weights.get(f"{name}.{rows}x{columns}"))
        self.blocks = nn.ModuleList(Block(plan, weights, n) for n in range(plan["layers"]))
        self.last = Norm(weights, "last", plan["eps"], plan["norm"])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(1, H, W, 3) pixels in [0, 1] -> (1, N, Dv)."""
        (h, w), p = self.grid, self.patch
        x = (images * self.factor + self.shift).reshape(h, p, w, p * 3).permute(0, 2, 1, 3).reshape(1, h * w, p * p * 3)
        x = self.embed_norm(self.embed(x))
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return {"features": self.last(x)}


class Projector(nn.Module):
    """Features in raster order -> rows for the language model."""

    def __init__(self, plan: Plan, weights: Weights, rows: int, columns: int) -> None:
        super().__init__()
        self.grid, self.merge, self.act = (rows, columns), plan["merge"], plan["activation"]
        self.first, self.second = Linear(weights, "first"), Linear(weights, "second")

    def forward(self, soft_tokens: Tensor) -> dict[str, Tensor]:
        """(1, N, Dv) -> (1, N / merge², D)."""
        (h, w), m, d = self.grid, self.merge, soft_tokens.shape[-1]
        x = soft_tokens.reshape(h // m, m, w // m, m, d).permute(0, 2, 1, 3, 4).reshape(1, h * w // m**2, m * m * d)
        return {"mm_embedding": self.second(activation(self.act, self.first(x)))}
