"""Uncommitted rows of a session: a token tree, its positions, and what each row may look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import SessionError


@frozen(eq=False)
class Step:
    """Rows about to be added: their positions, and which of the pending rows each may look at.

    Attributes:
        positions: (T,) absolute positions.
        visible: (T, pending + T) bool over uncommitted rows, or None for a plain chain after committed rows only.
    """

    positions: Tensor
    visible: Tensor | None


@define(eq=False)
class Tree:
    """Uncommitted rows in the order they came: the index of each row's predecessor (-1: the last committed row)."""

    parents: list[int] = field(factory=list)
    depths: list[int] = field(factory=list)

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, rows: int, parents: Sequence[int] | None, start: int, device: torch.device) -> Step:
        """`rows` new ones behind `start` committed rows; without `parents` a chain after the last row.

        Raises:
            SessionError: parents that do not fit, or point forward.
        """
        first, chain = len(self), parents is None
        if parents is None:
            parents = [first - 1 + i if first + i else -1 for i in range(rows)]
        if len(parents) != rows or any(not -1 <= p < first + i for i, p in enumerate(parents)):
            raise SessionError(f"parents {list(parents)} do not fit {rows} rows after {first} pending ones")
        for parent in parents:
            self.parents.append(parent)
            self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        positions = torch.tensor([start + depth for depth in self.depths[first:]], device=device)
        if chain and first == 0:
            return Step(positions, None)
        visible = torch.zeros(rows, first + rows, dtype=torch.bool)
        for i in range(rows):
            row = first + i
            while row >= 0:
                visible[i, row] = True
                row = self.parents[row]
        return Step(positions, visible.to(device))

    def check_path(self, rows: Sequence[int]) -> None:
        """Refuse rows that are no path from the last committed row.

        Raises:
            SessionError: with the tree.
        """
        previous = -1
        for row in rows:
            if not 0 <= row < len(self) or self.parents[row] != previous:
                why = f"predecessors of the uncommitted rows: {self.parents}"
                raise SessionError(f"rows {list(rows)} are no path from the last committed row", why=why)
            previous = row

    def clear(self) -> None:
        """Forget every row."""
        self.parents, self.depths = [], []
