"""Keys and values of a session: one run of rows per layer and KV head, in the precision asked for."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from andes_sdk.errors import SessionError

from .attention import NUMBER_BYTES
from .sizes import Sizes

LEAST, SPARE = 256, 16
"""Rows that each run has room for, and that it may have written to before memory is given back."""

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}

_TYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


class KVStore:
    """Rows of every layer and KV head; heads may hold different rows. Evicted rows are physically gone.

    Each run has room for twice its rows: room that was never written to is addresses, not memory.

    starts, counts: (layers, Hkv) first row and number of rows of each run; counts include uncommitted rows.
    """

    def __init__(self, sizes: Sizes, kv: str) -> None:
        self.kv, self._size = kv, sizes.head
        shape = (sizes.layers, sizes.kv_heads)
        self.starts, self.counts, self._room, self._written = (np.zeros(shape, np.int64) for _ in range(4))
        scales = ((np.float32, 1), (np.float32, 1)) if kv == "int8" else ()
        self._parts = ((_TYPES[kv], sizes.head), (_TYPES[kv], sizes.head), (np.int64, 1), *scales)
        # keys, values, positions, and scales of keys and values
        self._arrays = [_unwritten(*part, 0) for part in self._parts]

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
        keys, values, _, *scales = (a.ctypes.data for a in self._arrays)
        return [keys, values, *(scales or (0, 0))]

    def reserve(self, rows: int) -> None:
        """Make room for as many more rows in each run; addresses may change.

        Raises:
            SessionError: the system has no memory for them; nothing has changed then.
        """
        if (self.counts + rows > self._room).any():
            self._repack(rows)

    def added(self, rows: int, positions: np.ndarray) -> None:
        """Rows at these positions were written behind each run."""
        at = (self.starts + self.counts).reshape(-1, 1) + np.arange(rows)
        self._arrays[2][at] = positions
        self.counts += rows
        np.maximum(self._written, self.counts, out=self._written)

    def put(self, keys: np.ndarray, values: np.ndarray, positions: np.ndarray) -> None:
        """Write rows (layers, Hkv, T, d) at (T,) positions behind each run.

        Raises:
            SessionError: the system has no memory for them; nothing has changed then.
        """
        count = len(positions)
        self.reserve(count)
        at = (self.starts + self.counts).reshape(-1, 1) + np.arange(count)
        for part, rows in enumerate((keys, values)):
            runs = rows.reshape(len(at), count, self._size)
            if self.kv == "int8":
                largest = np.abs(runs).max(axis=2)
                self._arrays[3 + part][at] = largest / np.float32(127)
                runs = np.rint(runs / np.where(largest > 0, largest / np.float32(127), np.float32(1))[..., None])
            self._arrays[part][at] = runs
        self.added(count, positions)

    def keep_tail(self, pending: int, rows: Sequence[int]) -> None:
        """Of the last `pending` rows of each run keep these, in this order."""
        if list(rows) != list(range(len(rows))):
            index = np.array(rows, np.int64)
            for start, count in zip(self.starts.flat, self.counts.flat, strict=True):
                base = start + count - pending
                for array in self._arrays:
                    array[base : base + len(rows)] = array[base + index]
        self.counts += len(rows) - pending

    def evict(self, layer: int, kept: Sequence[Tensor]) -> None:
        """Keep per KV head these ascending row indices."""
        for head, index in enumerate(kept):
            start, chosen = self.starts[layer, head], index.numpy()
            for array in self._arrays:
                array[start : start + len(chosen)] = array[start + chosen]
            self.counts[layer, head] = len(chosen)

    def shrink(self) -> None:
        """Give memory back once less than half of what was written to is in use."""
        if self._written.sum() > 2 * self.counts.sum() + SPARE * self.counts.size:
            self._repack(0)

    def head(self, layer: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (rows, d) float32 and positions (rows,) of one head."""
        start = self.starts[layer, head]
        rows = slice(start, start + self.counts[layer, head])
        keys, values, positions, *scales = (a[rows] for a in self._arrays)
        found = [keys.astype(np.float32), values.astype(np.float32)]
        if scales:
            found = [a * scale[:, None] for a, scale in zip(found, scales, strict=True)]
        return torch.from_numpy(found[0]), torch.from_numpy(found[1]), torch.from_numpy(positions.copy())

    def dump(self) -> dict[str, Tensor]:
        """Each part's rows, one run after another, and rows per run; copies."""
        runs = list(zip(self.starts.flat, self.counts.flat, strict=True))
        index = np.concatenate([np.arange(start, start + count) for start, count in runs])
        parts = {f"part{n}": torch.from_numpy(array[index]) for n, array in enumerate(self._arrays)}
        return {**parts, "counts": torch.from_numpy(self.counts.copy())}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take rows that `dump` gave, into an empty store.

        Raises:
            SessionError: the system has no memory for them. ValueError: parts that do not fit one another.
        """
        counts = state["counts"].numpy()
        lengths = {len(state[f"part{n}"]) for n in range(len(self._arrays))}
        if counts.shape != self.counts.shape or lengths != {int(counts.sum())}:
            raise ValueError(f"parts of {sorted(lengths)} rows do not fit {counts.sum()} rows in {counts.shape} runs")
        self.reserve(int(counts.max(initial=0)))
        ends = np.cumsum(counts.ravel())
        for start, end, count in zip(self.starts.flat, ends, counts.flat, strict=True):
            for n, array in enumerate(self._arrays):
                array[start : start + count] = state[f"part{n}"].numpy()[end - count : end]
        self.counts[:] = counts
        np.maximum(self._written, self.counts, out=self._written)

    # ------------------------------------------------------------ memory

    def _repack(self, rows: int) -> None:
        starts, room = self.starts.copy(), np.maximum(2 * (self.counts + rows), LEAST)
        arrays = [_unwritten(*part, int(room.sum())) for part in self._parts]  # may fail: nothing has changed yet
        self.starts.flat[:] = np.cumsum(room.ravel()) - room.ravel()
        for n, new in enumerate(arrays):
            old = self._arrays[n]
            for to, start, count in zip(self.starts.flat, starts.flat, self.counts.flat, strict=True):
                new[to : to + count] = old[start : start + count]
            self._arrays[n] = new  # the old one goes before the next is written to
        self._room, self._written = room, self.counts.copy()


def _unwritten(kind: type, width: int, rows: int) -> np.ndarray:
    """Rows of `width` numbers that take no memory until they are written to.

    NumPy would ask for huge pages, of which the first row takes a whole one.
    """
    size = rows * width
    nbytes = max(1, size * np.dtype(kind).itemsize)
    try:
        memory = mmap.mmap(-1, nbytes, **_PRIVATE)
    except OSError as error:
        what, fix = f"no memory for {nbytes:,} bytes of keys or values", "shorten the conversation, or use kv='int8'"
        raise SessionError(what, who="numba", why=str(error), fix=fix) from error
    numbers = np.frombuffer(memory, kind, size)
    return numbers.reshape(rows, width) if width > 1 else numbers


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
