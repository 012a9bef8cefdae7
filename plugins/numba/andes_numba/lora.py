"""LoRA as inputs of a pass (Hu et al. 2021): y += scale * B (A x), row by row, in float32; nothing is merged.

Each row names its adapter, so sessions with different ones share a pass over the weights. A row is computed in the same
order whatever stands beside it, and a row without an adapter is not touched: bits stay what they are alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numba import njit, prange

from andes_sdk.runtime.lora import refuse_double, refuse_misfit, refuse_other_base, refuse_unknown

from .activations import address, inline, silu
from .simd import ONE, fma, load_f, mul_f, splat_f, store_f, store_f32, total_f, zeros_f

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Adapter

    from .sizes import Sizes

ROLES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
"""Linear layers of a decoder layer, in the order of `Weights.products`."""

GROUPS = ((0, 3), (3, 4), (4, 6), (6, 7))
"""Roles that share their input: q-k-v, output, gate-up, down."""


class Lora(NamedTuple):
    """Adapters of a pass of T rows; whoever calls keeps the arrays behind the addresses.

    rows: (T,) index of each row's adapter, -1 for none; empty if no row has one. pairs: (adapters, layers, 7, 2)
    addresses of A (rank, columns) and of B transposed (rank, outputs), 0 where there is none; ranks, scales: of each.
    used: (layers, 4) whether any adapter has a pair in a group of roles. columns, outputs: (7,) padded to sixteen;
    offsets: (7,) column of each role in the buffer of its group. most: the largest rank.
    """

    rows: np.ndarray
    pairs: np.ndarray
    ranks: np.ndarray
    scales: np.ndarray
    used: np.ndarray
    columns: np.ndarray
    outputs: np.ndarray
    offsets: np.ndarray
    most: int


# ---------------------------------------------------------------- compiled


@inline
def dot(a, x, columns):
    """Sum of products of `columns` numbers (a multiple of sixteen) at two addresses."""
    total = zeros_f(ONE)
    for j in range(0, columns, 16):
        total = fma(load_f(ONE, a + 4 * j, 0), load_f(ONE, x + 4 * j, 0), total)
    return total_f(total)


@njit(parallel=True, nogil=True)
def shrink(lora, layer, first, last, x, inner, count, threads):
    """inner (rows, 3, most) = A x of the roles `first` to `last`; each thread takes a share of every rank."""
    for n in prange(threads):
        for t in range(count):
            owner = lora.rows[t]
            if owner >= 0:
                for role in range(first, last):
                    a, rank = lora.pairs[owner, layer, role, 0], lora.ranks[owner, layer, role]
                    columns = lora.columns[role]
                    for r in range(n * rank // threads, (n + 1) * rank // threads):
                        value = dot(a + 4 * r * columns, address(x[t]), columns)
                        store_f32(address(inner[t, role - first]) + 4 * r, value)


@njit(parallel=True, nogil=True)
def expand(lora, layer, first, last, inner, y, count, threads):
    """Add scale * B inner to y, which holds the roles `first` to `last` side by side; each thread takes outputs."""
    for n in prange(threads):
        for t in range(count):
            owner = lora.rows[t]
            if owner >= 0:
                for role in range(first, last):
                    b, rank = lora.pairs[owner, layer, role, 1], lora.ranks[owner, layer, role]
                    outputs, scale = lora.outputs[role], splat_f(lora.scales[owner, layer, role])
                    vectors = outputs // 16 if rank else 0
                    out = address(y[t]) + 4 * lora.offsets[role]
                    for v in range(n * vectors // threads, (n + 1) * vectors // threads):
                        total = zeros_f(ONE)
                        for r in range(rank):
                            factor = splat_f(inner[t, role - first, r])
                            total = fma(load_f(ONE, b + 4 * (r * outputs + 16 * v), 0), factor, total)
                        store_f(out + 64 * v, 0, fma(total, scale, load_f(ONE, out + 64 * v, 0)))


@inline
def adapt(lora, layer, first, last, x, y, inner, count, threads):
    """Both halves: what the adapters add to the roles `first` to `last`, from rows x to rows y."""
    shrink(lora, layer, first, last, x, inner, count, threads)
    expand(lora, layer, first, last, inner, y, count, threads)


@njit(parallel=True, nogil=True)
def gate_rows(both, gated, columns, count, threads):
    """gated = silu(gate) * up for rows that hold gate and up side by side, each as wide as `gated`."""
    for n in prange(threads):
        for t in range(n * count // threads, (n + 1) * count // threads):
            for j in range(0, columns, 16):
                gates = load_f(ONE, address(both[t]) + 4 * j, 0)
                ups = load_f(ONE, address(both[t]) + 4 * (gated.shape[1] + j), 0)
                store_f(address(gated[t]) + 4 * j, 0, mul_f(silu(gates), ups))


# ---------------------------------------------------------------- Python


class Adapters(Mapping[str, int]):
    """The adapters of one compiled model, by name -> index; laid out once, used by every session where they lie."""

    def __init__(self, sizes: Sizes, model: VisionLanguageModel) -> None:
        self._sizes, self._model, self._index = sizes, model, dict[str, int]()
        self._arrays: dict[str, list[np.ndarray]] = {}
        q, kv = sizes.q_heads * sizes.head, sizes.kv_heads * sizes.head
        wide = -(-sizes.inner // 128) * 128
        columns = sizes.width, sizes.width, sizes.width, q, sizes.width, sizes.width, sizes.inner
        outputs = q, kv, kv, sizes.width, sizes.inner, sizes.inner, sizes.width
        self._columns, self._outputs = _padded(columns), _padded(outputs)
        self._shapes = list(zip(outputs, columns, strict=True))
        self._offsets = np.array([0, q, q + kv, 0, 0, wide, 0], np.int64)
        shape = (0, sizes.layers, len(ROLES))
        self._pairs, self._ranks = np.zeros((*shape, 2), np.int64), np.zeros(shape, np.int64)
        self._scales = np.zeros(shape, np.float32)
        self._idle = self._lora(np.zeros(0, np.int64), self._ranks)

    def __getitem__(self, name: str) -> int:
        return self._index[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def add(self, adapter: Adapter) -> None:
        """Lay an adapter's matrices out.

        Raises:
            DuplicateName: there is one of that name. ConfigError: a pair for no linear layer of a decoder layer,
                of another shape or type, or a base of other numbers than the model's.
        """
        refuse_double(adapter, self)
        refuse_other_base(adapter, self._model)
        places = {f"model.layers.{n}.{r}": (n, i) for n in range(self._sizes.layers) for i, r in enumerate(ROLES)}
        refuse_misfit(adapter, {name: self._shapes[role] for name, (_, role) in places.items()})
        pairs, ranks = (np.zeros((1, *a.shape[1:]), np.int64) for a in (self._pairs, self._ranks))
        scales = np.zeros((1, *self._scales.shape[1:]), np.float32)
        arrays: list[np.ndarray] = []
        for name, low in adapter.layers.items():
            n, role = places[name]
            rows = [matrix.numpy() for matrix in low.matrices()]
            a, b = _laid_out(rows[0], self._columns[role]), _laid_out(rows[1].T, self._outputs[role])
            pairs[0, n, role] = a.ctypes.data, b.ctypes.data
            ranks[0, n, role], scales[0, n, role] = len(a), low.scale
            arrays += [a, b]
        self._pairs, self._ranks = np.concatenate([self._pairs, pairs]), np.concatenate([self._ranks, ranks])
        self._scales = np.concatenate([self._scales, scales])
        self._arrays[adapter.name] = arrays
        self._index[adapter.name] = len(self._index)

    def remove(self, name: str) -> None:
        """Forget an adapter and free its matrices; those behind it move up.

        A pass that runs meanwhile has tables of its own, and no row of this adapter.

        Raises:
            ConfigError: there is none of that name.
        """
        refuse_unknown(name, self)
        gone = self._index[name]
        self._pairs, self._ranks, self._scales = (
            np.delete(table, gone, axis=0) for table in (self._pairs, self._ranks, self._scales)
        )
        self._index = {other: i - (i > gone) for other, i in self._index.items() if other != name}
        del self._arrays[name]

    def of(self, names: Sequence[str | None], lengths: Sequence[int]) -> Lora:
        """For a pass over rows of several sessions: each session's adapter, and its number of rows."""
        index = [-1 if name is None else self._index[name] for name in names]
        chosen = sorted({i for i in index if i >= 0})
        if not chosen:
            return self._idle
        return self._lora(np.repeat(np.array(index, np.int64), lengths), self._ranks[chosen])

    def _lora(self, rows: np.ndarray, ranks: np.ndarray) -> Lora:
        used = np.stack([ranks[:, :, a:b].any(axis=(0, 2)) for a, b in GROUPS], axis=1).astype(np.uint8)
        layout = self._columns, self._outputs, self._offsets
        return Lora(rows, self._pairs, self._ranks, self._scales, used, *layout, int(ranks.max(initial=0)))


def _padded(sizes: Sequence[int]) -> np.ndarray:
    return np.array([-(-n // 16) * 16 for n in sizes], np.int64)


def _laid_out(matrix: np.ndarray, columns: int) -> np.ndarray:
    """(rank, n) -> (rank, columns) float32 with zeros behind."""
    out = np.zeros((len(matrix), columns), np.float32)
    out[:, : matrix.shape[1]] = matrix
    return out
