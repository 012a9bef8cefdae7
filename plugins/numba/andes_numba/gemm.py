"""y = W x for many activation rows: four row blocks times four rows at a time, all in registers.

To the bit what `product.py` computes. Codes narrower than a byte are first spread to bytes, four row blocks at a time;
sums of a group are exact integers, and the float sums keep their order. Sparse formats stay with `product.py`: a kernel
that skips what is not stored does half the work of one on spread codes, and was the faster of the two.
After BLIS (Van Zee & van de Geijn, ACM TOMS 41(3), 2015), without packing the activations, whose rows are short enough
to stay in the second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numba.extending import overload

from andes_sdk.formats import FORMATS, Half, Integer

from . import product
from .activations import activate, address, inline, silu
from .machine import kept
from .simd import (
    FOUR,
    ONE,
    Tag,
    add_f,
    and_i,
    load_i,
    mul_f,
    mul_i,
    shift_right,
    splat_i,
    store_f,
    zeros_f,
)
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

    def bytes_of(isa, fmt, columns, weights, size, groups, buffer):
        row = groups * group * 16
        for c in range(width):
            for g in range(groups):
                spread(fmt, weights + c * size + g * length + 32, address(buffer) + c * row + g * group * 16)
        return address(buffer), row, group * 16

    return bytes_of


def room(fmt: Any, groups: int) -> int:
    """Bytes `prepare` needs for four row blocks."""
    raise NotImplementedError("compiled code only")


@overload(room)
def _room(fmt, groups):
    layout = FORMATS[fmt.value]
    group = 0 if isinstance(layout, Half) or layout.grid.bits == 8 else layout.group
    return lambda fmt, groups: 64 * group * groups


def tile(isa: Any, fmt: Any, columns: Any, weights: int, size: int, codes: Any, x: Any, row: int) -> Any:
    """`columns` row blocks for four activation rows from `row` on; codes come from `prepare`, x from `activate`."""
    raise NotImplementedError("compiled code only")


@overload(tile, jit_options={"forceinline": True})
def _tile(isa, fmt, columns, weights, size, codes, x, row):
    layout, vectors = FORMATS[fmt.value], Tag("rows", 4 * columns.value)
    if isinstance(layout, Half):
        return _tile_half(vectors)
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


@inline
def strip(isa, fmt, columns, weights, size, x, count, y, stride, add, buffer):
    """Some row blocks for all activation rows; y is the address of their first output."""
    codes = prepare(isa, fmt, columns, weights, size, x[1], buffer)
    for row in range(0, count, 4):
        value, here = tile(isa, fmt, columns, weights, size, codes, x, row), y + row * stride
        if add:
            value = add_f(load_tile(FOUR, columns, here, stride), value)
        store_tile(FOUR, columns, here, stride, value)


@inline
def strip_gated(isa, fmt, columns, gates, ups, size, x, count, y, stride, buffer):
    """As `strip`, for silu(gate) * up."""
    half = buffer.size // 2
    first = prepare(isa, fmt, columns, gates, size, x[1], buffer[:half])
    second = prepare(isa, fmt, columns, ups, size, x[1], buffer[half:])
    for row in range(0, count, 4):
        value = silu(tile(isa, fmt, columns, gates, size, first, x, row))
        value = mul_f(value, tile(isa, fmt, columns, ups, size, second, x, row))
        store_tile(FOUR, columns, y + row * stride, stride, value)


# ---------------------------------------------------------------- whole matrices


@njit(parallel=True, nogil=True)
def multiply_many(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """As `product.multiply`, to the bit, for `FEW` rows or more; each thread has some row blocks of every matrix."""
    total = runs[:, 1].sum()
    for n in prange(threads):
        buffer, start = np.empty(room(fmt, x[1]), np.uint8), 0
        for r in range(len(runs)):
            stop = start + runs[r, 1]
            b, last = max(start, n * total // threads), min(stop, (n + 1) * total // threads)
            at = runs[r, 0] - start * size
            while b + 4 <= last:
                strip(isa, fmt, FOUR, at + b * size, size, x, count, y + 64 * b, stride, add, buffer)
                b += 4
            while b < last:
                strip(isa, fmt, ONE, at + b * size, size, x, count, y + 64 * b, stride, add, buffer)
                b += 1
            start = stop


@njit(parallel=True, nogil=True)
def gate_many(isa, fmt, pair, size, x, count, y, stride, threads):
    """As `product.multiply_gated`, to the bit, for `FEW` rows or more."""
    blocks = pair[0, 1]
    for n in prange(threads):
        buffer = np.empty(2 * room(fmt, x[1]), np.uint8)
        b, last = n * blocks // threads, (n + 1) * blocks // threads
        while b < last:
            gates, ups, out = pair[0, 0] + b * size, pair[1, 0] + b * size, y + 64 * b
            if b + 4 <= last:
                strip_gated(isa, fmt, FOUR, gates, ups, size, x, count, out, stride, buffer)
                b += 4
            else:
                strip_gated(isa, fmt, ONE, gates, ups, size, x, count, out, stride, buffer)
                b += 1


def multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """`product.multiply`, by `multiply_many` where that is faster: for many rows of a dense format,
    unless integers meet exact floats."""
    raise NotImplementedError("compiled code only")


def multiply_gated(isa, fmt, pair, size, x, count, y, stride, threads):
    """`product.multiply_gated`, by `gate_many` where that is faster."""
    raise NotImplementedError("compiled code only")


def _computed_here(fmt, x):
    layout = FORMATS[fmt.value]
    return isinstance(layout, Half) or (isinstance(layout, Integer) and x.types[0].value != "exact")


@overload(multiply)
def _multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    few = product.multiply
    if not _computed_here(fmt, x):
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
    few = product.multiply_gated
    if not _computed_here(fmt, x):
        return lambda isa, fmt, pair, size, x, count, y, stride, threads: few(
            isa, fmt, pair, size, x, count, y, stride, threads
        )

    def either(isa, fmt, pair, size, x, count, y, stride, threads):
        if count >= FEW:
            gate_many(isa, fmt, pair, size, x, count, y, stride, threads)
        else:
            few(isa, fmt, pair, size, x, count, y, stride, threads)

    return either


@kept
def multiply_rows(isa, fmt, mode, packed, columns, x, count, y, threads):
    """As `product.multiply_rows`, by `multiply`."""
    a = activate(mode, fmt, x, columns, 0, count, threads)
    runs = np.array([[address(packed), packed.shape[0]]])
    multiply(isa, fmt, runs, packed.shape[1], a, count, address(y), 4 * y.shape[1], False, threads)
