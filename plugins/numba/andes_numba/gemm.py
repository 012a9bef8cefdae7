"""y = W x for many activation rows: four row blocks times four rows at a time, all in registers.

To the bit what `product.py` computes. Codes narrower than a byte are first spread to bytes, four row blocks at a time;
sums of a group are exact integers, and the float sums keep their order. 1:4 sparse formats have tiles of their own
(`sparse_tile.py`) with AVX-512; 2:8 ones, whose choices take four times the operations, and exact activations stay with
`product.py`. Threads take four row blocks at a time, whoever is free.
After BLIS (Van Zee & van de Geijn, ACM TOMS 41(3), 2015), without packing the activations, whose rows are short enough
to stay in the second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from andes_packing.formats import FORMATS, Half, Integer, OneOfFour
from numba import njit, prange
from numba.extending import overload

from . import product
from .activations import activate, address, bare, silu
from .apart import apart
from .crew import claim, first_stage, no_stages
from .machine import kept
from .simd import (
    FOUR,
    ONE,
    Tag,
    add_f,
    and_i,
    load_f,
    load_i,
    mul_f,
    mul_i,
    shift_right,
    splat_i,
    store_f,
    zeros_f,
)
from .sparse_tile import prepare_with, spread_bytes, tile_with
from .tile import FULL, HALF, SMALL, load_tile, scaled, spread_rows, step, store_tile

FEW = 12
"""Rows below which spreading codes costs more than it saves."""

# ---------------------------------------------------------------- codes to bytes


def spread(fmt: Any, codes: int, out: int) -> None:
    """Codes of one group of a row block -> one unsigned byte a column."""
    raise NotImplementedError("compiled code only")


@overload(spread, jit_options={"forceinline": True})
def _spread(fmt, codes, out):
    layout = FORMATS[fmt.value]
    bits, fields = layout.grid.bits, 8 // layout.grid.bits
    vectors, mask = layout.group // (4 * fields), 0x01010101 * ((1 << bits) - 1)

    def dense(fmt, codes, out):
        for n in range(vectors):
            packed = load_i(ONE, codes + 64 * n, 0)
            for j in range(fields):
                store_f(out + 64 * (fields * n + j), 0, and_i(shift_right(packed, bits * j), splat_i(mask)))

    return dense


# ---------------------------------------------------------------- row blocks side by side


def prepare(isa: Any, fmt: Any, columns: Any, weights: int, size: int, groups: int, buffer: Any) -> Any:
    """Bytes of `columns` row blocks: (address of the first group, from block to block, from group to group)."""
    raise NotImplementedError("compiled code only")


@overload(prepare, jit_options={"forceinline": True})
def _prepare(isa, fmt, columns, weights, size, groups, buffer):
    layout = FORMATS[fmt.value]
    length, group, width = layout.group_bytes, layout.group, columns.value
    if isinstance(layout, Half) or layout.grid.bits == 8:
        return lambda isa, fmt, columns, weights, size, groups, buffer: (weights + 32, size, length)
    if isinstance(layout, OneOfFour):
        return prepare_with(layout, width)

    def bytes_of(isa, fmt, columns, weights, size, groups, buffer):
        row, start = groups * group * 16, (address(buffer) + 63) // 64 * 64
        for c in range(width):
            for g in range(groups):
                spread(fmt, weights + c * size + g * length + 32, start + c * row + g * group * 16)
        return start, row, group * 16

    return bytes_of


def room(fmt: Any, groups: int) -> int:
    """Bytes `prepare` needs for four row blocks."""
    raise NotImplementedError("compiled code only")


@overload(room)
def _room(fmt, groups):
    layout = FORMATS[fmt.value]
    if isinstance(layout, Half) or layout.grid.bits == 8:
        return lambda fmt, groups: 0
    each = 4 * (spread_bytes(layout.group) if isinstance(layout, OneOfFour) else 16 * layout.group)
    return lambda fmt, groups: each * groups + 64


def tile(isa: Any, fmt: Any, columns: Any, weights: int, size: int, codes: Any, x: Any, row: int) -> Any:
    """`columns` row blocks for four activation rows from `row` on; codes come from `prepare`, x from `activate`."""
    raise NotImplementedError("compiled code only")


@overload(tile, jit_options={"forceinline": True})
def _tile(isa, fmt, columns, weights, size, codes, x, row):
    layout, vectors = FORMATS[fmt.value], Tag("rows", 4 * columns.value)
    if isinstance(layout, Half):
        return _tile_half(vectors)
    if isinstance(layout, OneOfFour):
        return tile_with(layout, vectors, columns.value)
    length, group, low = layout.group_bytes, layout.group, layout.grid.low
    kind, steps = (FULL if layout.grid.bits == 8 else SMALL), layout.group // 4

    def integers(isa, fmt, columns, weights, size, codes, x, row):
        _, groups, stride, all_codes, all_scales, all_sums = x
        values, scales, sums = address(all_codes[row]), address(all_scales[row]), address(all_sums[row])
        start, across, along = codes
        total = zeros_f(vectors)
        for g in range(groups):
            inner = mul_i(spread_rows(FOUR, columns, sums + 4 * g, 4 * groups), splat_i(low))
            for s in range(steps):
                at = start + g * along + 64 * s
                inner = step(isa, kind, FOUR, columns, inner, values + g * group + 4 * s, stride, at, across)
            total = scaled(FOUR, columns, total, inner, scales + 4 * g, 4 * groups, weights + g * length, size)
        return total

    return integers


def _tile_half(vectors):
    def halves(isa, fmt, columns, weights, size, codes, x, row):
        _, groups, stride, floats, _, _ = x
        values = address(floats[row])
        even, odd = zeros_f(vectors), zeros_f(vectors)  # as one activation row: two sums
        for g in range(groups):
            even = step(isa, HALF, FOUR, columns, even, values + 8 * g, stride, weights + 64 * g, size)
        for g in range(groups):
            odd = step(isa, HALF, FOUR, columns, odd, values + 8 * g + 4, stride, weights + 64 * g + 32, size)
        return add_f(even, odd)

    return halves


@apart
def strip(isa, fmt, columns, weights, size, x, count, y, stride, add, buffer):
    """Some row blocks for all activation rows; y is the address of their first output."""
    codes = prepare(isa, fmt, columns, weights, size, x[1], buffer)
    for row in range(0, count, 4):
        value, here = tile(isa, fmt, columns, weights, size, codes, x, row), y + row * stride
        if add:
            value = add_f(load_tile(FOUR, columns, here, stride), value)
        store_tile(FOUR, columns, here, stride, value)


@bare
def strips(isa, fmt, weights, size, blocks, x, count, y, stride, add, buffer):
    """One to four row blocks for all activation rows."""
    if blocks == 4:
        strip(isa, fmt, FOUR, weights, size, x, count, y, stride, add, buffer)
    else:
        for b in range(blocks):
            strip(isa, fmt, ONE, weights + b * size, size, x, count, y + 64 * b, stride, add, buffer)


# ---------------------------------------------------------------- whole matrices


@bare
def _take_strips(counters, isa, fmt, runs, size, x, count, y, stride, add):
    """What a thread does in `multiply_many`: strips, until none is left."""
    buffer, stage = np.empty(room(fmt, x[1]), np.uint8), first_stage(counters)
    item, before, start = claim(stage), 0, 0
    for r in range(len(runs)):
        here = (runs[r, 1] + 3) // 4
        while item < before + here:
            b = 4 * (item - before)
            out, blocks = y + 64 * (start + b), min(4, runs[r, 1] - b)
            strips(isa, fmt, runs[r, 0] + b * size, size, blocks, x, count, out, stride, add, buffer)
            item = claim(stage)
        before, start = before + here, start + runs[r, 1]


@njit(parallel=True, nogil=True)
def multiply_many(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """As `product.multiply`, to the bit, for `FEW` rows or more."""
    counters = no_stages(1)
    for _ in prange(threads):
        _take_strips(counters, isa, fmt, runs, size, x, count, y, stride, add)


@bare
def _take_gates(counters, isa, fmt, pair, size, x, count, y, stride):
    """What a thread does in `gate_many`: the gates of a strip, then what they let through."""
    stage = first_stage(counters)
    buffer, ups = np.empty(room(fmt, x[1]), np.uint8), np.empty(((count + 3) // 4 * 4, 64), np.float32)
    # no literals: with them `strips` would be compiled once more each
    add, narrow, item = count == 0, 4 * ups.shape[1], claim(stage)
    while 4 * item < pair[0, 1]:
        b = 4 * item
        blocks, out = min(4, pair[0, 1] - b), y + 64 * b
        strips(isa, fmt, pair[0, 0] + b * size, size, blocks, x, count, out, stride, add, buffer)
        strips(isa, fmt, pair[1, 0] + b * size, size, blocks, x, count, address(ups), narrow, add, buffer)
        for row in range(count):
            for j in range(0, 64 * blocks, 64):
                at = out + row * stride + j
                store_f(at, 0, mul_f(silu(load_f(ONE, at, 0)), load_f(ONE, address(ups[row]) + j, 0)))
        item = claim(stage)


@njit(parallel=True, nogil=True)
def gate_many(isa, fmt, pair, size, x, count, y, stride, threads):
    """As `product.multiply_gated`, to the bit, for `FEW` rows or more."""
    counters = no_stages(1)
    for _ in prange(threads):
        _take_gates(counters, isa, fmt, pair, size, x, count, y, stride)


def multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """`product.multiply`, by `multiply_many` where that is faster: for many rows, but not for every format."""
    raise NotImplementedError("compiled code only")


def multiply_gated(isa, fmt, pair, size, x, count, y, stride, threads):
    """`product.multiply_gated` for `FEW` rows or more, by `gate_many` where that is faster."""
    raise NotImplementedError("compiled code only")


def _computed_here(isa, fmt, x):
    layout = FORMATS[fmt.value]
    integers = isinstance(layout, Integer) or (isinstance(layout, OneOfFour) and isa.value == "avx512vnni")
    return isinstance(layout, Half) or (integers and x.types[0].value != "exact")


@overload(multiply)
def _multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    few = product.multiply
    if not _computed_here(isa, fmt, x):
        return lambda isa, fmt, runs, size, x, count, y, stride, add, threads: few(
            isa, fmt, runs, size, x, count, y, stride, add, threads
        )

    def either(isa, fmt, runs, size, x, count, y, stride, add, threads):
        if count >= FEW:
            multiply_many(isa, fmt, runs, size, x, count, y, stride, add, threads)
        else:
            few(isa, fmt, runs, size, x, count, y, stride, add, threads)

    return either


@overload(multiply_gated)
def _multiply_gated(isa, fmt, pair, size, x, count, y, stride, threads):
    gates = gate_many if _computed_here(isa, fmt, x) else product.multiply_gated
    return lambda isa, fmt, pair, size, x, count, y, stride, threads: gates(
        isa, fmt, pair, size, x, count, y, stride, threads
    )


@kept
def multiply_rows(isa, fmt, mode, packed, columns, x, count, y, threads):
    """As `product.multiply_rows`, by `multiply`."""
    a = activate(mode, fmt, x, columns, 0, count, threads)
    runs = np.array([[address(packed), packed.shape[0]]])
    multiply(isa, fmt, runs, packed.shape[1], a, count, address(y), 4 * y.shape[1], False, threads)


@kept
def gate_rows(isa, fmt, mode, packed, columns, x, count, y, threads):
    """As `multiply_rows`, of gates and what they let through: packed (2, row blocks, bytes)."""
    a = activate(mode, fmt, x, columns, 0, count, threads)
    pair = np.array([[address(packed[0]), packed.shape[1]], [address(packed[1]), packed.shape[1]]])
    multiply_gated(isa, fmt, pair, packed.shape[2], a, count, address(y), 4 * y.shape[1], threads)
