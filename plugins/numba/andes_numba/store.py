"""Keys and values of a session: one run of rows per layer and KV head, in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .attention import NUMBER_BYTES
from .step import Sizes

_TYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


class KVStore:
    """Rows of every layer and KV head; heads may hold different rows. Evicted rows are physically gone.

    starts, counts: (layers, Hkv) first row and number of rows of each run; counts include uncommitted rows.
    """

    def __init__(self, sizes: Sizes, kv: str) -> None:
        self.kv, self._size = kv, sizes.head
        shape = (sizes.layers, sizes.kv_heads)
        self.starts, self.counts, self._room = (np.zeros(shape, np.int64) for _ in range(3))
        self._allocate(0)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one head, keys and values."""
        return 2 * (self._size * NUMBER_BYTES[self.kv] + (4 if self.kv == "int8" else 0))

    def nbytes(self, pending: int) -> int:
        """Bytes of the rows in use, without the last `pending` of each head."""
        return int((self.counts - pending).sum()) * self.row_bytes

    @property
    def addresses(self) -> list[int]:
        """Of keys, values and their scales; they change with `reserve`, `evict` and `shrink`."""
        return [a.ctypes.data for a in (self._keys, self._values, *self._scales)]

    def reserve(self, rows: int) -> None:
        """Make room for as many more rows in each run; addresses may change."""
        if (self.counts + rows > self._room).any():
            self._repack(rows)

    def added(self, rows: int, positions: np.ndarray) -> None:
        """Rows at these positions were written behind each run."""
        at = (self.starts + self.counts).reshape(-1, 1) + np.arange(rows)
        self._positions[at] = positions
        self.counts += rows

    def keep_tail(self, pending: int, rows: Sequence[int]) -> None:
        """Of the last `pending` rows of each run keep these, in this order."""
        if list(rows) != list(range(len(rows))):
            index = np.array(rows, np.int64)
            for start, count in zip(self.starts.flat, self.counts.flat, strict=True):
                base = start + count - pending
                for array in self._arrays():
                    array[base : base + len(rows)] = array[base + index]
        self.counts += len(rows) - pending

    def evict(self, layer: int, kept: Sequence[Tensor]) -> None:
        """Keep per KV head these ascending row indices."""
        for head, index in enumerate(kept):
            start, chosen = self.starts[layer, head], index.numpy()
            for array in self._arrays():
                array[start : start + len(chosen)] = array[start + chosen]
            self.counts[layer, head] = len(chosen)

    def shrink(self) -> None:
        """Give memory back once less than half of it is in use."""
        if self._room.sum() > 2 * self._wanted(0).sum():
            self._repack(0)

    def head(self, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (rows, d) float32 and positions (rows,) of one head."""
        start = self.starts[layer, head]
        rows = slice(start, start + self.counts[layer, head])
        found = [a[rows].astype(np.float32) for a in (self._keys, self._values)]
        if self.kv == "int8":
            found = [a * scale[rows, None] for a, scale in zip(found, self._scales, strict=True)]
        return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(self._positions[rows].copy())

    # ------------------------------------------------------------ memory

    def _arrays(self) -> tuple[np.ndarray, ...]:
        scales = self._scales if self.kv == "int8" else ()
        return self._keys, self._values, self._positions, *scales

    def _wanted(self, rows: int) -> np.ndarray:
        return (self.counts + rows) * 5 // 4 + 16

    def _allocate(self, rows: int) -> None:
        shape = (rows, self._size)
        self._keys, self._values = (np.empty(shape, _TYPES[self.kv]) for _ in range(2))
        scaled = rows if self.kv == "int8" else 0
        self._scales = tuple(np.empty(scaled, np.float32) for _ in range(2))
        self._positions = np.empty(rows, np.int64)

    def _repack(self, rows: int) -> None:
        old, starts, room = self._arrays(), self.starts.copy(), self._wanted(rows)
        self._allocate(int(room.sum()))
        self.starts.flat[:] = np.cumsum(room.ravel()) - room.ravel()
        self._room = room
        for to, start, count in zip(self.starts.flat, starts.flat, self.counts.flat, strict=True):
            for new, array in zip(self._arrays(), old, strict=True):
                new[to : to + count] = array[start : start + count]


class LazyHeads(Sequence[Tensor]):
    """One tensor per KV head, made when it is looked at: most policies decide by the number of rows alone."""

    def __init__(self, heads: int, make: Callable[[int], Tensor]) -> None:
        self._heads, self._make = heads, make

    def __len__(self) -> int:
        return self._heads

    def __getitem__(self, head: int) -> Tensor:  # type: ignore[override]
        if not -self._heads <= head < self._heads:
            raise IndexError(head)
        return self._make(head % self._heads)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._make(h) for h in range(self._heads))
