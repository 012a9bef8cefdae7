"""Storage of keys and values: rows of evicted tokens are physically gone, heads may keep different rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH = 1.25


class Group:
    """Growable rows of one group of KV heads that hold the same number of rows.

    keys, values: (heads, capacity, d); positions: (heads, capacity) absolute positions. Keys keep their rotation.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        self.keys, self.values, self.positions = keys, values, positions
        self.count = keys.shape[1]

    @property
    def heads(self) -> int:
        """KV heads in this group."""
        return self.keys.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one head, keys and values."""
        return 2 * self.keys.shape[2] * self.keys.element_size()

    def view(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (heads, count, d) and positions (heads, count) in use."""
        return self.keys[:, : self.count], self.values[:, : self.count], self.positions[:, : self.count]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add (heads, T, d) rows at (T,) positions."""
        rows = keys.shape[1]
        need = self.count + rows
        if need > self.keys.shape[1]:
            self._grow(max(need, int(self.keys.shape[1] * GROWTH) + 16))
        self.keys[:, self.count : need] = keys
        self.values[:, self.count : need] = values
        self.positions[:, self.count : need] = positions
        self.count = need

    def _grow(self, capacity: int) -> None:
        for name in ("keys", "values", "positions"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], capacity, *old.shape[2:])
            new[:, : self.count] = old[:, : self.count]
            setattr(self, name, new)

    def keep_tail(self, base: int, rows: Sequence[int]) -> None:
        """Of the rows after `base` keep these, in this order; drop the others."""
        if rows and list(rows) != list(range(len(rows))):
            index = torch.tensor(rows, device=self.keys.device) + base
            for x in (self.keys, self.values, self.positions):
                x[:, base : base + len(rows)] = x.index_select(1, index)
        self.count = base + len(rows)


def gathered(sources: Sequence[tuple[Group, int]], kept: Sequence[Tensor]) -> Group:
    """A new group of these heads with (n,) rows each, and with room for as many new ones as went, up to a quarter."""
    rows = len(kept[0])
    room = rows + min(sources[0][0].count - rows, rows // 4) + 16
    parts = []
    for name in ("keys", "values", "positions"):
        old = getattr(sources[0][0], name)
        new = old.new_empty(len(sources), room, *old.shape[2:])
        for to, (group, head), index in zip(new, sources, kept, strict=True):
            torch.index_select(getattr(group, name)[head], 0, index, out=to[:rows])
        parts.append(new)
    group = Group(*parts)
    group.count = rows
    return group


class LayerStore:
    """One layer's KV rows: a single group while all heads hold the same number of rows, else one group per head."""

    def __init__(self, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.empty(heads, 0, head_dim, dtype=dtype, device=device)
        positions = torch.empty(heads, 0, dtype=torch.int64, device=device)
        self.groups = [Group(empty, empty.clone(), positions)]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add (Hkv, T, d) rows."""
        start = 0
        for group in self.groups:
            stop = start + group.heads
            group.append(keys[start:stop], values[start:stop], positions)
            start = stop

    def keep_tail(self, pending: int, rows: Sequence[int]) -> None:
        """Of the last `pending` rows keep these."""
        for group in self.groups:
            group.keep_tail(group.count - pending, rows)

    def evict(self, kept: Sequence[Tensor]) -> None:
        """Keep per KV head these (n,) row indices; the memory of all others is freed."""
        sources = [(group, head) for group in self.groups for head in range(group.heads)]
        if len({len(index) for index in kept}) == 1:
            self.groups = [gathered(sources, kept)]
        else:
            self.groups = [gathered([source], [index]) for source, index in zip(sources, kept, strict=True)]

    def fill(self, heads: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Take per KV head copies of keys (n, d), values (n, d) and positions (n,), in place of what is there."""
        self.groups = [Group(*(part[None] for part in head)) for head in heads]
        self.evict([torch.arange(group.count, device=group.keys.device) for group in self.groups])

    def heads(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per KV head its keys (n, d), values (n, d) and positions (n,)."""
        return [(k[h], v[h], p[h]) for g in self.groups for k, v, p in [g.view()] for h in range(g.heads)]

    def counts(self) -> tuple[int, ...]:
        """Rows per KV head."""
        return tuple(group.count for group in self.groups for _ in range(group.heads))

    def bytes(self, pending: int = 0) -> int:
        """Bytes of the rows in use, without the last `pending` ones."""
        return sum((group.count - pending) * group.heads * group.row_bytes for group in self.groups)
