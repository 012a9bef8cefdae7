"""Reference encoder, projector and language model: the least code that keeps the contract."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.checkpoint import checkpoint

from andes_sdk.inputs.patches import patch_positions, split_rows
from andes_sdk.types import Attend, Grid, Tap, TextSpec, VisionSpec

HEADS, KV_HEADS, HEAD = 4, 2, 8


def waves(positions: Tensor, width: int) -> Tensor:
    """(N,) positions -> (N, width) sines and cosines, in float32 (Vaswani et al. 2017)."""
    steps = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * 100.0 ** (-2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Encoder(nn.Module):
    """Patches -> linear layer, places, one attention block within each image, norm."""

    def __init__(self, width: int, patch_size: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        self.spec = VisionSpec(width=width, patch_size=patch_size, merge=2)
        self.checkpointing = checkpointing
        self.embed = nn.Linear(3 * patch_size**2, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) -> (N, Dv); see `andes_sdk.types.VisionEncoder`."""
        places = patch_positions(grids, self.spec.merge, patches.device)
        half = self.spec.width // 2
        x = self.embed(patches)  # (N, Dv)
        x = x + torch.cat([waves(places[:, axis], half) for axis in (0, 1)], dim=-1).to(x.dtype)
        if self.checkpointing and self.training:
            x = x + checkpoint(self.attention, x, grids, use_reentrant=False)
        else:
            x = x + self.attention(x, grids)
        normed: Tensor = self.norm(x)
        return normed

    def attention(self, x: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, Dv) -> (N, Dv), image by image."""
        done = []
        for part in split_rows(x, grids):
            q, k, v = self.qkv(part).unflatten(-1, (3, 2, -1)).permute(1, 2, 0, 3)[:, None]  # (1, 2, n, Dv / 2) each
            done.append(scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
        rows: Tensor = self.out(torch.cat(done) if done else x)
        return rows


class Projector(nn.Module):
    """`merge**2` rows side by side -> one row of the language model's width."""

    def __init__(self, width: int, merge: int, text_width: int) -> None:
        super().__init__()
        self.wide = width * merge**2
        self.linear = nn.Linear(self.wide, text_width)

    def forward(self, features: Tensor) -> Tensor:
        """(N, Dv) -> (N / merge**2, D)."""
        rows: Tensor = self.linear(features.reshape(-1, self.wide))
        return rows


class Block(nn.Module):
    """Pre-norm attention through `attend`, then a gated feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, HEADS * HEAD)
        self.k, self.v = nn.Linear(width, KV_HEADS * HEAD), nn.Linear(width, KV_HEADS * HEAD)
        self.out = nn.Linear(HEADS * HEAD, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, index: int, attend: Attend) -> Tensor:
        """(T, D) -> (T, D)."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (-1, HEAD)).transpose(0, 1)[None] for layer in (self.q, self.k, self.v))
        x = x + self.out(attend(index, q, k, v, HEAD**-0.5)[0].flatten(1))
        gate, value = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(silu(gate) * value)  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Two blocks; absolute positions are added to the embeddings."""

    def __init__(self, vocab_size: int, max_positions: int, *, checkpointing: bool = False) -> None:
        super().__init__()
        width = HEADS * HEAD
        self.spec = TextSpec(
            width=width, vocab_size=vocab_size, layers=2, query_heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD,
            max_positions=max_positions,
        )  # fmt: skip
        self.checkpointing = checkpointing
        self.tokens = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, D)."""
        rows: Tensor = self.tokens(ids)
        return rows

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) at (T,) positions -> (T, D)."""
        x = embeds + waves(positions, self.spec.width).to(embeds.dtype)
        for index, block in enumerate(self.blocks):
            if tap is not None:
                tap(index, x)
            if self.checkpointing and self.training:
                x = checkpoint(block, x, index, attend, use_reentrant=False)
            else:
                x = block(x, index, attend)
        if tap is not None:
            tap(len(self.blocks), x)
        normed: Tensor = self.norm(x)
        return normed

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        roles = {"q": "q", "k": "k", "v": "v", "out": "o", "up": "up", "down": "down"}
        return {f"blocks.{n}.{name}": (n, role) for n in range(len(self.blocks)) for name, role in roles.items()}

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        scores: Tensor = self.head(hidden)
        return scores
