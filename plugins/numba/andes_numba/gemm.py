"""y = W x for several activation rows: two row blocks times two or four rows at a time, all in registers.

To the bit what `product.py` computes. Each tile takes codes out of their bytes anew: that is done by units of the core
which multiply nothing. Sums of a group are exact integers, and the float sums keep their order. 1:4 sparse formats have
tiles of their own (`sparse_tile.py`) with AVX-512; 2:8 ones, whose choices take four times the operations, and exact
activations stay with `product.py`. Threads take four row blocks at a time, whoever is free.
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
from .activations import activate, address, bare, inline, silu
from .apart import apart
from .crew import claim, first_stage, no_stages
from .machine import kept
from .simd import (
    FOUR,
    ONE,
    TWO,
    Tag,
    add_f,
    and_i,
    fetch,
    load_f,
    load_i,
    mul_f,
    mul_i,
    shift_right,
    splat_i,
    store_f,
    zeros_f,
)
from .sparse_tile import ACROSS, next_lines, sparse_tile
from .tile import FULL, HALF, SMALL, cross, load_tile, scaled, spread_rows, step, store_tile

# ---------------------------------------------------------------- two row blocks side by side


def tile(isa: Any, fmt: Any, rows: Any, weights: int, size: int, x: Any, row: int) -> Any:
    """Two row blocks for TWO or FOUR activation rows from `row` on; x comes from `activate`."""
    raise NotImplementedError("compiled code only")


@overload(tile, jit_options={"forceinline": True})
def _tile(isa, fmt, rows, weights, size, x, row):
    layout, vectors = FORMATS[fmt.value], Tag("rows", ACROSS * rows.value)
    if isinstance(layout, Half):
        return _tile_half(vectors)
    if isinstance(layout, OneOfFour):
        return sparse_tile(layout, vectors)
    length, group, low, bits = layout.group_bytes, layout.group, layout.grid.low, layout.grid.bits
    kind, fields, mask = (FULL if bits == 8 else SMALL), 8 // bits, 0x01010101 * ((1 << bits) - 1)
    packs, lines = group // (4 * fields), next_lines(layout)

    def integers(isa, fmt, rows, weights, size, x, row):
        _, groups, stride, all_codes, all_scales, all_sums = x
        values, scales, sums = address(all_codes[row]), address(all_scales[row]), address(all_sums[row])
        total = zeros_f(vectors)
        for g in range(groups):
            at, here = weights + g * length, values + g * group
            if row == 0:
                fetch(weights + ACROSS * (size + g * length), lines)
            inner = mul_i(spread_rows(rows, TWO, sums + 4 * g, 4 * groups), splat_i(low))
            for n in range(packs):
                packed = load_i(TWO, at + 32 + 64 * n, size)
                for j in range(fields):
                    codes = packed if fields == 1 else and_i(shift_right(packed, bits * j), splat_i(mask))
                    inner = cross(isa, kind, rows, inner, here + 4 * (fields * n + j), stride, codes)
            total = scaled(rows, TWO, total, inner, scales + 4 * g, 4 * groups, at, size)
        return total

    return integers


def _tile_half(vectors):
    def halves(isa, fmt, rows, weights, size, x, row):
        _, groups, stride, floats, _, _ = x
        values = address(floats[row])
        even, odd = zeros_f(vectors), zeros_f(vectors)  # as one activation row: two sums
        for g in range(groups):
            even = step(isa, HALF, rows, TWO, even, values + 8 * g, stride, weights + 64 * g, size)
        for g in range(groups):
            odd = step(isa, HALF, rows, TWO, odd, values + 8 * g + 4, stride, weights + 64 * g + 32, size)
        return add_f(even, odd)

    return halves


@inline
def _some_rows(isa, fmt, rows, weights, size, x, row, y, stride, add):
    value = tile(isa, fmt, rows, weights, size, x, row)
    if add:
        value = add_f(load_tile(rows, TWO, y, stride), value)
    store_tile(rows, TWO, y, stride, value)


@apart
def strip(isa, fmt, weights, size, x, count, y, stride, add):
    """Two row blocks for all activation rows; y is the address of their first output."""
    for row in range(0, count, 4):
        if count - row > 2:
            _some_rows(isa, fmt, FOUR, weights, size, x, row, y + row * stride, stride, add)
        else:
            _some_rows(isa, fmt, TWO, weights, size, x, row, y + row * stride, stride, add)


# ---------------------------------------------------------------- some row blocks


def multiply_blocks(
    isa: Any, fmt: Any, weights: int, size: int, x: Any, count: int, y: int, stride: int, add: bool, first: int,
    last: int,
) -> None:  # fmt: skip
    """Outputs of the row blocks `first` to `last` for all `count` activation rows.

    y (rows, stride bytes) float32; rows are padded to a multiple of four unless there is one. `add` adds to y.
    """
    raise NotImplementedError("compiled code only")


def gate_blocks(
    isa: Any, fmt: Any, gates: int, ups: int, size: int, x: Any, count: int, y: int, stride: int, first: int,
    last: int,
) -> None:  # fmt: skip
    """SwiGLU of the row blocks `first` to `last` of a gate and of what it gates: y gets silu(gate) * up."""
    raise NotImplementedError("compiled code only")


def _computed_here(isa, fmt, x):
    layout = FORMATS[fmt.value]
    integers = isinstance(layout, Integer) or (isinstance(layout, OneOfFour) and isa.value == "avx512vnni")
    return isinstance(layout, Half) or (integers and x.types[0].value != "exact")


@overload(multiply_blocks)
def _multiply_blocks(isa, fmt, weights, size, x, count, y, stride, add, first, last):
    single, several = product.single, product.multiply_blocks if not _computed_here(isa, fmt, x) else _strips

    def either(isa, fmt, weights, size, x, count, y, stride, add, first, last):
        if count == 1:
            single(isa, fmt, weights, size, x, 0, y, add, first, last)
        else:
            several(isa, fmt, weights, size, x, count, y, stride, add, first, last)

    return either


@overload(gate_blocks)
def _gate_blocks(isa, fmt, gates, ups, size, x, count, y, stride, first, last):
    single, several = product.single_gate, product.gate_blocks if not _computed_here(isa, fmt, x) else _gate_strips

    def either(isa, fmt, gates, ups, size, x, count, y, stride, first, last):
        if count == 1:
            single(isa, fmt, gates, ups, size, x, 0, y, first, last)
        else:
            several(isa, fmt, gates, ups, size, x, count, y, stride, first, last)

    return either


@bare
def _strips(isa, fmt, weights, size, x, count, y, stride, add, first, last):
    whole = last - max(0, last - first) % ACROSS  # nothing is left of an empty range, whose end may come first
    for b in range(first, whole, ACROSS):
        strip(isa, fmt, weights + b * size, size, x, count, y + 64 * b, stride, add)
    for row in range(count if whole < last else 0):  # of small models, and at the end of a thread's share
        product.single(isa, fmt, weights, size, x, row, y + row * stride, add, whole, last)


@bare
def _gate_strips(isa, fmt, gates, ups, size, x, count, y, stride, first, last):
    whole = last - max(0, last - first) % ACROSS  # nothing is left of an empty range, whose end may come first
    other = np.empty(((count + 3) // 4 * 4, 16 * ACROSS), np.float32)
    add = count == 0  # no literal: with it `strip` would be compiled once more
    for b in range(first, whole, ACROSS):
        to = y + 64 * b
        strip(isa, fmt, gates + b * size, size, x, count, to, stride, add)
        strip(isa, fmt, ups + b * size, size, x, count, address(other), 64 * ACROSS, add)
        for row in range(count):
            for j in range(0, 64 * ACROSS, 64):
                at = to + row * stride + j
                store_f(at, 0, mul_f(silu(load_f(ONE, at, 0)), load_f(ONE, address(other[row]) + j, 0)))
    for row in range(count if whole < last else 0):
        product.single_gate(isa, fmt, gates, ups, size, x, row, y + row * stride, whole, last)


# ---------------------------------------------------------------- whole matrices


@bare
def _take_strips(counters, isa, fmt, runs, size, x, count, y, stride, add):
    """What a thread does in `multiply`: strips, until none is left."""
    stage = first_stage(counters)
    item, before, start = claim(stage), 0, 0
    for r in range(len(runs)):
        here = (runs[r, 1] + 3) // 4
        while item < before + here:
            b = 4 * (item - before)
            multiply_blocks(
                isa, fmt, runs[r, 0], size, x, count, y + 64 * start, stride, add, b, min(b + 4, runs[r, 1])
            )
            item = claim(stage)
        before, start = before + here, start + runs[r, 1]


@njit(parallel=True, nogil=True)
def multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """`multiply_blocks` of matrices that stand one above another.

    runs (matrices, 2): address and row blocks of each; `size` bytes per row block.
    """
    counters = no_stages(1)
    for _ in prange(threads):
        _take_strips(counters, isa, fmt, runs, size, x, count, y, stride, add)


@bare
def _take_gates(counters, isa, fmt, pair, size, x, count, y, stride):
    stage = first_stage(counters)
    item = claim(stage)
    while 4 * item < pair[0, 1]:
        b = 4 * item
        gate_blocks(isa, fmt, pair[0, 0], pair[1, 0], size, x, count, y, stride, b, min(b + 4, pair[0, 1]))
        item = claim(stage)


@njit(parallel=True, nogil=True)
def multiply_gated(isa, fmt, pair, size, x, count, y, stride, threads):
    """`gate_blocks` of whole matrices. pair (2, 2): address and row blocks of gate and up."""
    counters = no_stages(1)
    for _ in prange(threads):
        _take_gates(counters, isa, fmt, pair, size, x, count, y, stride)


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
