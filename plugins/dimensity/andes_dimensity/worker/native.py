"""Graphs for pictures of any shape that has at most so many tokens, as LiteRT-LM feeds encoders at native resolution.

It cuts patches in reading order, gives the column and row of each ("positions_xy", -1 beyond the picture), and takes
the signature `vision_N` of least N that holds the picture. What depends on the picture's shape is therefore computed
here from positions: block order, rotary angles, the resized position table, and what hides the rest of the graph's
patches. Lookups are products with rows of zeros and a one: exact, and without gathers, which the NPU does not take.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from graphs import MASKED, Block, Linear, Norm, Plan, Weights, activation
from torch import Tensor, nn

BICUBIC = -0.75
"""The `a` of torch's bicubic kernel."""


def step(x: Tensor) -> Tensor:
    """1 for whole numbers from 0 on, 0 below."""
    return F.relu(x + 1) - F.relu(x)


def ones_at(at: Tensor, count: int) -> Tensor:
    """(1, N, 1) whole numbers -> (1, N, count): 1 where they point, 0 elsewhere; all 0 beyond the count."""
    return F.relu(1 - (at - torch.arange(count, dtype=torch.float32)).abs())


def bicubic(at: Tensor, side: int) -> Tensor:
    """(1, N, 1) places on an axis of `side` numbers -> (1, N, side + 4): weights of these and of two at each end."""
    d, a = (at - torch.arange(-2, side + 2, dtype=torch.float32)).abs(), BICUBIC
    near = 1 - F.relu(1 - d)  # the least of d and 1
    far = 1 + F.relu(d - 1) - F.relu(d - 2)  # d between 1 and 2
    inner = ((a + 2) * near - (a + 3)) * near * near + 1
    return inner + ((a * far - 5 * a) * far + 8 * a) * far - 4 * a


class Table(nn.Module):
    """Rows of a constant, weighted. The quantiser leaves what this name stands in alone."""

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, weights: Tensor) -> Tensor:
        """(1, N, K) -> (1, N, D)."""
        return torch.matmul(weights, self.rows)


class NativeEncoder(nn.Module):
    """Patches of one picture -> features of its tokens, `merge` ** 2 patches side by side in each."""

    factor: Tensor
    shift: Tensor
    each: Tensor
    block: Tensor
    down: Tensor
    right: Tensor

    def __init__(self, plan: Plan, weights: Weights, tokens: int) -> None:
        super().__init__()
        self.tokens, self.merge, self.side = tokens, plan["merge"], plan["side"]
        each = torch.arange(tokens * plan["merge"] ** 2)
        block, inside = each // plan["merge"] ** 2, each % plan["merge"] ** 2
        numbers = {"each": each, "block": block, "down": inside // plan["merge"], "right": inside % plan["merge"]}
        for name, one in numbers.items():  # of each patch in block order: its number, its block, row and column therein
            self.register_buffer(name, one.float()[None, :, None])
        colours = plan["patch"] ** 2
        mean, std = torch.tensor(plan["mean"]), torch.tensor(plan["std"])
        self.register_buffer("factor", (1 / std).repeat(colours))
        self.register_buffer("shift", (-mean / std).repeat(colours))
        self.embed = Linear(weights, "embed")
        has_norm = "embed_norm.weight" in weights
        self.embed_norm = Norm(weights, "embed_norm", plan["eps"], plan["norm"]) if has_norm else nn.Identity()
        self.cos, self.sin = (Table(weights[n]) if n in weights else None for n in ("turns.cos", "turns.sin"))
        self.places = Table(weights["places"]) if "places" in weights else None
        self.blocks = nn.ModuleList(Block(plan, weights, n) for n in range(plan["layers"]))
        self.last = Norm(weights, "last", plan["eps"], plan["norm"])

    def forward(self, images: Tensor, positions_xy: Tensor) -> dict[str, Tensor]:
        """(1, N, 3 p²) pixels in [0, 1], (1, N, 2) column and row -> (1, N / merge², merge² Dv)."""
        m, count = self.merge, self.each.shape[1]
        xy = positions_xy.to(torch.float32)
        x, y = xy[..., :1], xy[..., 1:]
        held = step(x)
        columns = (held * F.relu(1 - y)).sum(1, keepdim=True)  # patches whose row is 0
        rows = (held * F.relu(1 - x)).sum(1, keepdim=True)
        wide = columns / m
        # rows of blocks above: how many whole ones fit before this block; FLOOR is an operator that the NPU lacks
        above = step(self.block - wide * torch.arange(1, self.tokens + 1, dtype=torch.float32)).sum(-1, keepdim=True)
        row, column = above * m + self.down, (self.block - above * wide) * m + self.right
        mask = (step(rows * columns - 1 - self.each) - 1).reshape(1, 1, 1, count) * -MASKED
        # normalised before they are moved: beside the matrix the converter would multiply its weights with the factor
        patches = torch.matmul(ones_at(row * columns + column, count), images * self.factor + self.shift)
        h = self.embed_norm(self.embed(patches))
        if self.places is not None:
            both = ((row, rows), (column, columns))
            down, across = (bicubic((at + 0.5) * (self.side / full) - 0.5, self.side) for at, full in both)
            h = h + self.places((down[..., :, None] * across[..., None, :]).reshape(1, count, -1))
        cos = sin = None
        if self.cos is not None and self.sin is not None:
            up, left = (ones_at(at, self.cos.rows.shape[0]) for at in (row, column))
            # rows turn the first quarter of a head's features, columns the second, and both halves turn alike
            cos, sin = (torch.cat([table(up), table(left)] * 2, -1)[:, None] for table in (self.cos, self.sin))
        for one in self.blocks:
            h = one(h, cos, sin, mask)
        return {"features": self.last(h).reshape(1, self.tokens, -1)}


class EndOfPicture(nn.Module):
    """The embedding of the token behind a picture: LiteRT-LM asks for it, and not for the token."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row, requires_grad=False)

    def forward(self) -> dict[str, Tensor]:
        """-> (1, 1, D)."""
        return {"embedding": self.row * 1.0}


class NativeProjector(nn.Module):
    """Features of tokens, their patches side by side -> rows for the language model."""

    def __init__(self, plan: Plan, weights: Weights) -> None:
        super().__init__()
        self.act = plan["activation"]
        self.first, self.second = Linear(weights, "first"), Linear(weights, "second")

    def forward(self, soft_tokens: Tensor) -> dict[str, Tensor]:
        """(1, T, merge² Dv) -> (1, T, D)."""
        return {"mm_embedding": self.second(activation(self.act, self.first(soft_tokens)))}
