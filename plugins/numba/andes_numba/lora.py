"""LoRA as inputs of a pass (Hu et al. 2021): y += scale * B (A x), row by row, in float32; nothing is merged.

Each row names its adapter, so sessions with different ones share a pass over the weights. A row is computed in the same
order whatever stands beside it, and a row without an adapter is not touched: bits stay what they are alone.
int8 matrices stay int8 in memory: their codes are summed in float32, and the sum is multiplied with the row's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit, prange
from numba.extending import overload

from andes_sdk.errors import ConfigError
from andes_sdk.runtime.lora import refuse_double, refuse_misfit, refuse_other_base, refuse_unknown

from .activations import address, inline, silu
from .apart import apart
from .simd import (
    ONE,
    Tag,
    add_f,
    fetch,
    fma,
    load_bytes,
    load_f,
    load_f32,
    load_half,
    mul_f,
    splat_f,
    spread_f,
    store_f,
    store_f32,
    total_f,
    zeros_f,
)

if TYPE_CHECKING:
    from torch import Tensor

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

CODES = Tag("numbers", "codes")
"""Given in place of the mode of activations where A or B is int8."""

AHEAD = 2048
"""Bytes of A or B that are fetched before they are read: they are short arrays, which no stream of loads foresees."""


class Lora(NamedTuple):
    """Adapters of a pass of T rows; whoever calls keeps the arrays behind the addresses.

    rows: (T,) index of each row's adapter, -1 for none; empty if no row has one. pairs: (adapters, layers, 7, 2)
    addresses of A (rank, columns) and of B (blocks of sixteen outputs, rank, 16), 0 where there is none; ranks, scales:
    of each. A and B are float16, float32 where activations are exact, or int8. steps: (adapters, layers, 7, 2)
    addresses of the float32 scales of rows of an int8 A and B, padded as they are; 0 where they are floats.
    used: (layers, 4) whether any adapter has a pair in a group of roles. columns, outputs: (7,) padded to sixteen;
    offsets: (7,) column of each role in the buffer of its group. most: the largest rank.
    """

    rows: np.ndarray
    pairs: np.ndarray
    steps: np.ndarray
    ranks: np.ndarray
    scales: np.ndarray
    used: np.ndarray
    columns: np.ndarray
    outputs: np.ndarray
    offsets: np.ndarray
    most: int


# ---------------------------------------------------------------- compiled


def sixteen(mode: Any, at: int, index: int) -> Any:
    """Sixteen numbers of A or B: the `index`-th ones from an address on."""
    raise NotImplementedError("compiled code only")


@overload(sixteen, jit_options={"forceinline": True})
def _sixteen(mode, at, index):
    if mode.value == "exact":
        return lambda mode, at, index: load_f(ONE, at + 4 * index, 0)
    if mode.value == "codes":
        return lambda mode, at, index: load_bytes(ONE, at + index, 0)
    return lambda mode, at, index: load_half(ONE, at + 2 * index, 0)


def place(mode: Any, at: int, index: int) -> int:
    """The address of the `index`-th number of A or B."""
    raise NotImplementedError("compiled code only")


@overload(place, jit_options={"forceinline": True})
def _place(mode, at, index):
    size = {"exact": 4, "codes": 1}.get(mode.value, 2)
    return lambda mode, at, index: at + size * index


def foresee(mode: Any, at: int) -> None:
    """Tell the core that 64 numbers of A or B, `AHEAD` behind an address, will be read soon."""
    raise NotImplementedError("compiled code only")


@overload(foresee, jit_options={"forceinline": True})
def _foresee(mode, at):
    lines = Tag("lines", {"exact": 4, "codes": 1}.get(mode.value, 2))
    return lambda mode, at: fetch(at + AHEAD, lines)


@inline
def dot(mode, a, x, columns):
    """Sum of products of `columns` numbers (a multiple of sixteen) of A, and of x at an address: four sums in turns.

    A sum that waits for itself takes four cycles a step; four of them keep the unit busy.
    """
    one, two, three, four = zeros_f(ONE), zeros_f(ONE), zeros_f(ONE), zeros_f(ONE)
    for j in range(0, columns - 48, 64):
        foresee(mode, place(mode, a, j))
        one = fma(sixteen(mode, a, j), load_f(ONE, x + 4 * j, 0), one)
        two = fma(sixteen(mode, a, j + 16), load_f(ONE, x + 4 * j + 64, 0), two)
        three = fma(sixteen(mode, a, j + 32), load_f(ONE, x + 4 * j + 128, 0), three)
        four = fma(sixteen(mode, a, j + 48), load_f(ONE, x + 4 * j + 192, 0), four)
    for j in range(columns - columns % 64, columns, 16):
        one = fma(sixteen(mode, a, j), load_f(ONE, x + 4 * j, 0), one)
    return total_f(add_f(add_f(one, two), add_f(three, four)))


@inline
def low_row(mode, lora, layer, owner, role, row, x):
    """A row of A times x at an address."""
    a, steps, columns = lora.pairs[owner, layer, role, 0], lora.steps[owner, layer, role, 0], lora.columns[role]
    if steps:
        return dot(CODES, place(CODES, a, row * columns), x, columns) * load_f32(steps + 4 * row)
    return dot(mode, place(mode, a, row * columns), x, columns)


@inline
def block_sum(mode, b, rank, block, inner):
    """B inner of sixteen outputs."""
    start = place(mode, b, 16 * rank * block)
    one, two, three, four = zeros_f(ONE), zeros_f(ONE), zeros_f(ONE), zeros_f(ONE)
    for r in range(0, rank - 3, 4):
        foresee(mode, place(mode, start, 16 * r))
        one = fma(sixteen(mode, start, 16 * r), spread_f(ONE, inner + 4 * r, 0), one)
        two = fma(sixteen(mode, start, 16 * r + 16), spread_f(ONE, inner + 4 * r + 4, 0), two)
        three = fma(sixteen(mode, start, 16 * r + 32), spread_f(ONE, inner + 4 * r + 8, 0), three)
        four = fma(sixteen(mode, start, 16 * r + 48), spread_f(ONE, inner + 4 * r + 12, 0), four)
    for r in range(rank - rank % 4, rank):
        one = fma(sixteen(mode, start, 16 * r), spread_f(ONE, inner + 4 * r, 0), one)
    return add_f(add_f(one, two), add_f(three, four))


@apart
def expand_block(mode, b, steps, rank, block, inner, scale, out):
    """Add scale * B inner to sixteen outputs at an address; B lies block by block of outputs, (rank, 16) each."""
    if steps:
        size = mul_f(load_f(ONE, steps + 64 * block, 0), splat_f(scale))
        store_f(out, 0, fma(block_sum(CODES, b, rank, block, inner), size, load_f(ONE, out, 0)))
    else:
        store_f(out, 0, fma(block_sum(mode, b, rank, block, inner), splat_f(scale), load_f(ONE, out, 0)))


@njit(parallel=True, nogil=True)
def shrink(mode, lora, layer, first, last, x, inner, count, threads):
    """inner (rows, 3, most) = A x of the roles `first` to `last`; each thread takes a share of every rank."""
    for n in prange(threads):
        for t in range(count):
            owner = lora.rows[t]
            if owner >= 0:
                for role in range(first, last):
                    rank = lora.ranks[owner, layer, role]
                    for r in range(n * rank // threads, (n + 1) * rank // threads):
                        value = low_row(mode, lora, layer, owner, role, r, address(x[t]))
                        store_f32(address(inner[t, role - first]) + 4 * r, value)


@njit(parallel=True, nogil=True)
def expand(mode, lora, layer, first, last, inner, y, count, threads):
    """Add scale * B inner to y, which holds the roles `first` to `last` side by side; each thread takes outputs."""
    for n in prange(threads):
        for t in range(count):
            owner = lora.rows[t]
            if owner >= 0:
                for role in range(first, last):
                    b, steps = lora.pairs[owner, layer, role, 1], lora.steps[owner, layer, role, 1]
                    rank, scale = lora.ranks[owner, layer, role], lora.scales[owner, layer, role]
                    vectors = lora.outputs[role] // 16 if rank else 0
                    out, low = address(y[t]) + 4 * lora.offsets[role], address(inner[t, role - first])
                    for v in range(n * vectors // threads, (n + 1) * vectors // threads):
                        expand_block(mode, b, steps, rank, v, low, scale, out + 64 * v)


@inline
def adapt(mode, lora, layer, first, last, x, y, inner, count, threads):
    """Both halves: what the adapters add to the roles `first` to `last`, from rows x to rows y."""
    shrink(mode, lora, layer, first, last, x, inner, count, threads)
    expand(mode, lora, layer, first, last, inner, y, count, threads)


# ---------------------------------------------------------------- one row, in a region that runs already


@inline
def ranks_of(lora, layer, owner, first, last):
    """How many rows the A of the roles `first` to `last` have together."""
    total = 0
    for role in range(first, last):
        total += lora.ranks[owner, layer, role]
    return total


@apart
def shrink_some(mode, lora, layer, owner, first, last, x, inner, low, high):
    """A x of the rows `low` to `high` of the A of these roles, one above another; x, inner (3, most): addresses."""
    start, most = 0, lora.most
    for role in range(first, last):
        rank = lora.ranks[owner, layer, role]
        for r in range(max(0, low - start), min(rank, high - start)):
            value = low_row(mode, lora, layer, owner, role, r, x)
            store_f32(inner + 4 * ((role - first) * most + r), value)
        start += rank


@apart
def expand_some(mode, lora, layer, owner, role, inner, y, low, high):
    """Add scale * B inner to the blocks `low` to `high` of sixteen outputs of a role, whose first lies at address y."""
    b, steps = lora.pairs[owner, layer, role, 1], lora.steps[owner, layer, role, 1]
    rank, scale = lora.ranks[owner, layer, role], lora.scales[owner, layer, role]
    for v in range(low, high if rank else low):
        expand_block(mode, b, steps, rank, v, inner, scale, y + 64 * v)


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

    def __init__(self, sizes: Sizes, model: VisionLanguageModel, *, exact: bool) -> None:
        self._sizes, self._model, self._index = sizes, model, dict[str, int]()
        self._kind = np.float32 if exact else np.float16
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
        self._steps = np.zeros((*shape, 2), np.int64)
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
                of another shape or type, too large for float16, or a base of other numbers than the model's.
        """
        refuse_double(adapter, self)
        refuse_other_base(adapter, self._model)
        places = {f"model.layers.{n}.{r}": (n, i) for n in range(self._sizes.layers) for i, r in enumerate(ROLES)}
        refuse_misfit(adapter, {name: self._shapes[role] for name, (_, role) in places.items()})
        tables = self._pairs, self._steps, self._ranks
        pairs, steps, ranks = (np.zeros((1, *table.shape[1:]), np.int64) for table in tables)
        scales = np.zeros((1, *self._scales.shape[1:]), np.float32)
        arrays: list[np.ndarray] = []
        for name, low in adapter.layers.items():
            n, role = places[name]
            rank, outputs = len(low.a), self._outputs[role]
            a = self._laid_out(low.a, rank, self._columns[role], name)
            b = self._laid_out(low.b, outputs, rank, name)
            b = np.ascontiguousarray(b.reshape(-1, 16, rank).transpose(0, 2, 1))
            pairs[0, n, role] = a.ctypes.data, b.ctypes.data
            ranks[0, n, role], scales[0, n, role] = rank, low.scale
            arrays += [a, b]
            for half, (given, count) in enumerate(((low.a_scale, rank), (low.b_scale, outputs))):
                if given is not None:
                    size = np.zeros(count, np.float32)
                    size[: len(given)] = given.float().numpy()
                    steps[0, n, role, half] = size.ctypes.data
                    arrays.append(size)
        self._pairs, self._ranks = np.concatenate([self._pairs, pairs]), np.concatenate([self._ranks, ranks])
        self._steps = np.concatenate([self._steps, steps])
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
        self._pairs, self._steps, self._ranks, self._scales = (
            np.delete(table, gone, axis=0) for table in (self._pairs, self._steps, self._ranks, self._scales)
        )
        self._index = {other: i - (i > gone) for other, i in self._index.items() if other != name}
        del self._arrays[name]

    def nbytes(self, name: str) -> int:
        """Bytes of an adapter's matrices and scales as they lie here, padding included."""
        return sum(array.nbytes for array in self._arrays[name])

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
        most = int(ranks.max(initial=0))
        return Lora(rows, self._pairs, self._steps, self._ranks, self._scales, used, *layout, most)

    def _laid_out(self, matrix: Tensor, rows: int, columns: int, who: str) -> np.ndarray:
        """A matrix with zeros behind its rows and columns; int8 stays int8.

        Raises:
            ConfigError: numbers that are too large.
        """
        coded = not matrix.is_floating_point()
        out = np.zeros((rows, columns), np.int8 if coded else self._kind)
        with np.errstate(over="ignore"):
            out[: len(matrix), : matrix.shape[1]] = (matrix if coded else matrix.float()).numpy()
        if not np.isfinite(out).all():
            fix = "scale A down and B up, or set activations = 'exact', which keeps float32"
            raise ConfigError("an adapter with numbers beyond float16", who=who, fix=fix)
        return out


def _padded(sizes: Sequence[int]) -> np.ndarray:
    return np.array([-(-n // 16) * 16 for n in sizes], np.int64)
