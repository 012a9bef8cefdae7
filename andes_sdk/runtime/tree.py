"""Uncommitted rows of a session: a token tree, its positions, and what each row may look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import define, field
from torch import Tensor

from andes_sdk.errors import SessionError


@define(eq=False)
class Step:
    """Rows about to be added: their positions, and which of the pending rows each may look at.

    Attributes:
        positions: (T,) absolute positions.
        visible: (T, pending + T) bool over uncommitted rows, or None for a plain chain after committed rows only.
    """

    positions: Tensor
    visible: Tensor | None
    _mask: Tensor | None = field(default=None, init=False)

    def mask(self, total: int) -> Tensor:
        """(T, total) bool over stored rows: all committed ones, and the visible ones of the last. Built once."""
        if self._mask is None or self._mask.shape[1] < total:
            rows, device = len(self.positions), self.positions.device
            new = self.visible
            if new is None:
                new = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
            self._mask = torch.cat([new.new_ones(rows, total - new.shape[1]), new], dim=1)
        # committed rows are all seen, so fewer of them are the same mask cut at its left
        return self._mask[:, self._mask.shape[1] - total :]


@define(eq=False)
class Tree:
    """Uncommitted rows in the order they came: the index of each row's predecessor (-1: the last committed row).

    Attributes:
        sights: what rows see, as bits (row n is bit n), as far as somebody asked.
    """

    parents: list[int] = field(factory=list)
    depths: list[int] = field(factory=list)
    sights: list[int] = field(factory=list)

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, rows: int, parents: Sequence[int] | None, start: int, device: torch.device) -> Step:
        """`rows` new ones behind `start` committed rows; without `parents` a chain after the last row.

        Raises:
            SessionError: parents that do not fit, or point forward.
        """
        first, chain = len(self), parents is None
        if parents is None:
            parents = range(first - 1, first + rows - 1)
        elif len(parents) != rows or any(not -1 <= p < first + i for i, p in enumerate(parents)):
            raise SessionError(f"parents {list(parents)} do not fit {rows} rows after {first} pending ones")
        depths = self.depths
        for parent in parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        self.parents += parents
        positions = torch.from_numpy(np.array(depths[first:]) + start).to(device)
        if chain and first == 0:
            return Step(positions, None)
        return Step(positions, torch.from_numpy(self._seen(first)).to(device))

    def _seen(self, first: int) -> np.ndarray:
        """(rows, n) bool: what the rows from `first` on see of all n."""
        count, sights = len(self), self.sights
        for row in range(len(sights), count):  # a plain chain comes without
            parent = self.parents[row]
            sights.append((sights[parent] if parent >= 0 else 0) | 1 << row)
        size = -(-count // 8)
        packed = b"".join(sight.to_bytes(size, "little") for sight in sights[first:])
        bits = np.frombuffer(packed, np.uint8).reshape(-1, size)
        return np.unpackbits(bits, axis=1, count=count, bitorder="little").view(bool)

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

    def cut(self, rows: int) -> None:
        """Forget all but the first `rows` rows."""
        del self.parents[rows:], self.depths[rows:], self.sights[rows:]
