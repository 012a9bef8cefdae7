"""y = W x for weights in blocks of sixteen rows, one activation row or several.

An output adds its groups of columns in ascending order, whatever else is computed beside it: results do not depend on
the number of threads or of activation rows. With activations "int8" the products of a group are exact integers and one
fused multiply-add per group applies both scales; with "exact" everything is float32.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from andes_packing.formats import FORMATS, Half, Integer, OneOfFour, ThreeOfFour, TwoOfEight
from numba import njit, prange
from numba.extending import overload

from .activations import activate, address, inline, silu
from .apart import apart
from .isa import dot4, look_up, pick4, pick8, signs4
from .machine import kept
from .simd import (
    FOUR,
    NARROW,
    ONE,
    WIDE,
    Tag,
    add_b,
    add_f,
    add_i,
    and_i,
    choose_f,
    equal_i,
    fma,
    load_f,
    load_half,
    load_i,
    mul_f,
    mul_i,
    shift_left,
    shift_right,
    splat_i,
    spread_f,
    spread_i,
    spread_quad,
    store_f,
    sub_b,
    sub_i,
    to_f,
    zeros_f,
    zeros_i,
)

# ---------------------------------------------------------------- one group of one row block


def dot_int8(isa: Any, fmt: Any, rows: Any, codes: int, x: int, stride: int, total: Any) -> Any:
    """total + codes of a group times int8 activations, i32; sparse zero points are taken off here."""
    raise NotImplementedError("compiled code only")


def dot_float(fmt: Any, rows: Any, codes: int, x: int, stride: int) -> Any:
    """Weights of a group, without their scale, times float32 activations."""
    raise NotImplementedError("compiled code only")


@overload(dot_int8, jit_options={"forceinline": True})
def _dot_int8(isa, fmt, rows, codes, x, stride, total):
    layout = FORMATS[fmt.value]
    if isinstance(layout, TwoOfEight):
        return _pairs_int8(layout)
    if isinstance(layout, ThreeOfFour):
        return _signs_int8()
    return _sparse_int8(layout) if isinstance(layout, OneOfFour) else _dense_int8(layout)


@overload(dot_float, jit_options={"forceinline": True})
def _dot_float(fmt, rows, codes, x, stride):
    layout = FORMATS[fmt.value]
    if isinstance(layout, TwoOfEight):
        return _pairs_float(layout)
    if isinstance(layout, ThreeOfFour):
        return _signs_float()
    return _sparse_float(layout) if isinstance(layout, OneOfFour) else _dense_float(layout)


def _dense_int8(layout):
    bits, fields, small = layout.grid.bits, 8 // layout.grid.bits, NARROW if layout.grid.bits < 8 else WIDE
    vectors, mask = layout.group // (4 * fields), 0x01010101 * ((1 << bits) - 1)

    def dot(isa, fmt, rows, codes, x, stride, total):
        for n in range(vectors):
            packed = load_i(ONE, codes + 64 * n, 0)
            for j in range(fields):
                field = packed if fields == 1 else and_i(shift_right(packed, bits * j), splat_i(mask))
                values = spread_i(rows, x + 4 * (fields * n + j), stride)
                total = dot4(isa, small, total, field, values)
        return total

    return dot


@inline
def uncentred(isa, rows, sums, zeros):
    """What takes the 128 off that activations are too high by: sums of codes, a byte each, and of their zero points."""
    return mul_i(sub_i(dot4(isa, NARROW, zeros_i(rows), sums, splat_i(0x01010101)), splat_i(zeros)), splat_i(-128))


def _sparse_int8(layout):
    bits, fields, doubled = layout.grid.bits, 8 // layout.grid.bits, layout.grid.step == 2
    parts, size, mask = layout.group // 64, 64 + 32 * bits, 0x01010101 * ((1 << bits) - 1)
    zero, stored = -layout.grid.low, layout.group // 4

    def dot(isa, fmt, rows, codes, x, stride, total):
        # activations are unsigned (`activations.raised`), so that weights may be signed: a zero point would meet only
        # the columns that survive, which differ by row
        sums = zeros_i(ONE)
        for n in range(parts):
            start = codes + size * n
            index = load_i(ONE, start, 0)
            for j in range(4):
                where = and_i(shift_right(index, 2 * j), splat_i(0x03030303))
                values = pick4(isa, spread_quad(rows, x + 64 * n + 16 * j, stride), where)
                packed = load_i(ONE, start + 64 + 64 * (j // fields), 0)
                field = and_i(shift_right(packed, bits * (j % fields)), splat_i(mask))
                if doubled:
                    field = shift_left(field, 1)
                sums = add_b(sums, field)
                total = dot4(isa, NARROW, total, values, sub_b(field, splat_i(0x01010101 * zero)))
        return add_i(total, uncentred(isa, ONE, sums, zero * stored))

    return dot


def _dense_float(layout):
    bits, fields, low = layout.grid.bits, 8 // layout.grid.bits, layout.grid.low
    vectors, mask = layout.group // (4 * fields), (1 << bits) - 1

    def dot(fmt, rows, codes, x, stride):
        total = zeros_f(rows)
        for n in range(vectors):
            packed = load_i(ONE, codes + 64 * n, 0)
            for j in range(fields):
                for i in range(4):
                    code = and_i(shift_right(packed, 8 * i + bits * j), splat_i(mask))
                    weight = to_f(add_i(code, splat_i(low)))
                    total = fma(weight, spread_f(rows, x + 4 * (4 * (fields * n + j) + i), stride), total)
        return total

    return dot


def _sparse_float(layout):
    bits, fields, low = layout.grid.bits, 8 // layout.grid.bits, layout.grid.low
    doubled, mask = layout.grid.step == 2, (1 << bits) - 1
    parts, size = layout.group // 64, 64 + 32 * bits

    def dot(fmt, rows, codes, x, stride):
        total = zeros_f(rows)
        for n in range(parts):
            start = codes + size * n
            index = load_i(ONE, start, 0)
            for j in range(4):
                packed = load_i(ONE, start + 64 + 64 * (j // fields), 0)
                for i in range(4):
                    code = and_i(shift_right(packed, 8 * i + bits * (j % fields)), splat_i(mask))
                    if doubled:
                        code = shift_left(code, 1)
                    weight = to_f(add_i(code, splat_i(low)))
                    where = and_i(shift_right(index, 8 * i + 2 * j), splat_i(3))
                    at = x + 4 * (64 * n + 16 * j + 4 * i)
                    value = spread_f(rows, at, stride)
                    for c in range(1, 4):
                        value = choose_f(equal_i(where, splat_i(c)), spread_f(rows, at + 4 * c, stride), value)
                    total = fma(weight, value, total)
        return total

    return dot


_PATTERNS = list(combinations(range(8), 2))
FIRST, SECOND = (Tag("table", tuple([p[n] for p in _PATTERNS] + [0] * 4)) for n in (0, 1))
"""Pattern of two survivors among eight -> position of the first, and of the second."""


def _pairs_int8(layout):
    octets, offset = layout.group // 8, 0x01010101 * -layout.grid.low

    def dot(isa, fmt, rows, codes, x, stride, total):
        offsets = zeros_i(rows)
        for v in range(octets // 4):
            low = load_i(ONE, codes + 2 * octets + 64 * (v // 2), 0)
            pattern = and_i(shift_right(low, 4 * (v % 2)), splat_i(0x0F0F0F0F))
            both = load_i(ONE, codes + 10 * octets + 64 * v, 0)
            left, right = spread_quad(rows, x + 32 * v, stride), spread_quad(rows, x + 32 * v + 16, stride)
            first = pick8(isa, left, right, look_up(isa, FIRST, pattern, codes + 8 * v))
            second = pick8(isa, left, right, look_up(isa, SECOND, pattern, codes + 8 * v))
            total = dot4(isa, NARROW, total, and_i(both, splat_i(0x0F0F0F0F)), first)
            total = dot4(isa, NARROW, total, and_i(shift_right(both, 4), splat_i(0x0F0F0F0F)), second)
            offsets = dot4(isa, NARROW, offsets, splat_i(offset), first)
            offsets = dot4(isa, NARROW, offsets, splat_i(offset), second)
        return sub_i(total, offsets)

    return dot


def _pairs_float(layout):
    octets, low_code = layout.group // 8, layout.grid.low
    portable = Tag("isa", "portable")

    def dot(fmt, rows, codes, x, stride):
        total = zeros_f(rows)
        for v in range(octets // 4):
            low = load_i(ONE, codes + 2 * octets + 64 * (v // 2), 0)
            pattern = and_i(shift_right(low, 4 * (v % 2)), splat_i(0x0F0F0F0F))
            both = load_i(ONE, codes + 10 * octets + 64 * v, 0)
            first = look_up(portable, FIRST, pattern, codes + 8 * v)
            second = look_up(portable, SECOND, pattern, codes + 8 * v)
            for i in range(4):
                at = x + 4 * (32 * v + 8 * i)
                for n in range(2):
                    code = and_i(shift_right(both, 8 * i + 4 * n), splat_i(15))
                    where = and_i(shift_right(second if n else first, 8 * i), splat_i(7))
                    value = spread_f(rows, at, stride)
                    for c in range(1, 8):
                        value = choose_f(equal_i(where, splat_i(c)), spread_f(rows, at + 4 * c, stride), value)
                    total = fma(to_f(add_i(code, splat_i(low_code))), value, total)
        return total

    return dot


def _signs_int8():
    def dot(isa, fmt, rows, codes, x, stride, total):
        fifth = load_i(ONE, codes + 256, 0)
        for n in range(4):
            low = load_i(ONE, codes + 64 * n, 0)
            for j in range(8):
                quad = and_i(shift_right(low, 4 * j), splat_i(15))
                weights = signs4(isa, quad, and_i(shift_right(fifth, 8 * n + j), splat_i(1)))
                total = dot4(isa, NARROW, total, weights, spread_i(rows, x + 4 * (8 * n + j), stride))
        return total

    return dot


def _signs_float():
    portable = Tag("isa", "portable")

    def dot(fmt, rows, codes, x, stride):
        total, fifth = zeros_f(rows), load_i(ONE, codes + 256, 0)
        for n in range(4):
            low = load_i(ONE, codes + 64 * n, 0)
            for j in range(8):
                quad = and_i(shift_right(low, 4 * j), splat_i(15))
                stored = signs4(portable, quad, and_i(shift_right(fifth, 8 * n + j), splat_i(1)))
                for i in range(4):
                    weight = to_f(add_i(and_i(shift_right(stored, 8 * i), splat_i(3)), splat_i(-1)))
                    total = fma(weight, spread_f(rows, x + 4 * (4 * (8 * n + j) + i), stride), total)
        return total

    return dot


# ---------------------------------------------------------------- one row block


def block(isa: Any, fmt: Any, rows: Any, weights: int, x: Any, row: int) -> Any:
    """Sixteen outputs for `rows` activation rows from `row` on; x comes from `activate`."""
    raise NotImplementedError("compiled code only")


@overload(block, jit_options={"forceinline": True})
def _block(isa, fmt, rows, weights, x, row):
    layout = FORMATS[fmt.value]
    if isinstance(layout, Half):
        return _block_half()
    size, group = layout.group_bytes, layout.group
    if x.types[0].value == "exact":
        return _block_float(size, group)
    zero = -layout.grid.low if isinstance(layout, Integer | ThreeOfFour) else 0
    return _block_int8(size, group, zero)


def _block_int8(size, group, zero):
    def product(isa, fmt, rows, weights, x, row):
        _, groups, stride, codes, all_scales, all_sums = x
        values, scales, sums = address(codes[row]), address(all_scales[row]), address(all_sums[row])
        total = zeros_f(rows)
        for g in range(groups):
            at = weights + g * size
            inner = zeros_i(rows)
            if zero:
                inner = mul_i(spread_i(rows, sums + 4 * g, 4 * groups), splat_i(-zero))
            inner = dot_int8(isa, fmt, rows, at + 32, values + g * group, stride, inner)
            both = mul_f(load_half(ONE, at, 0), spread_f(rows, scales + 4 * g, 4 * groups))
            total = fma(to_f(inner), both, total)
        return total

    return product


def _block_float(size, group):
    def product(isa, fmt, rows, weights, x, row):
        _, groups, stride, floats, _, _ = x
        values = address(floats[row])
        total = zeros_f(rows)
        for g in range(groups):
            at = weights + g * size
            inner = dot_float(fmt, rows, at + 32, values + 4 * g * group, stride)
            total = fma(inner, load_half(ONE, at, 0), total)
        return total

    return product


def _block_half():
    def product(isa, fmt, rows, weights, x, row):
        _, groups, stride, floats, _, _ = x
        values = address(floats[row])
        even, odd = zeros_f(rows), zeros_f(rows)  # two sums: one alone would wait for itself
        for g in range(groups):
            at = weights + 64 * g
            even = fma(load_half(ONE, at, 0), spread_f(rows, values + 8 * g, stride), even)
            odd = fma(load_half(ONE, at + 32, 0), spread_f(rows, values + 8 * g + 4, stride), odd)
        return add_f(even, odd)

    return product


# ---------------------------------------------------------------- whole matrices


@apart
def single(isa, fmt, weights, size, x, row, y, add, first, last):
    """Outputs of the row blocks `first` to `last` for one activation row; y: address of the row. `add` adds to y."""
    for b in range(first, last):
        value, out = block(isa, fmt, ONE, weights + b * size, x, row), y + 64 * b
        store_f(out, 0, add_f(load_f(ONE, out, 0), value) if add else value)


@apart
def multiply_blocks(isa, fmt, weights, size, x, count, y, stride, add, first, last):
    """As `gemm.multiply_blocks`, for more than one activation row, four at a time."""
    for b in range(first, last):
        for row in range(0, count, 4):
            values, here = block(isa, fmt, FOUR, weights + b * size, x, row), y + 64 * b + row * stride
            store_f(here, stride, add_f(load_f(FOUR, here, stride), values) if add else values)


@njit(parallel=True, nogil=True)
def multiply(isa, fmt, runs, size, x, count, y, stride, add, threads):
    """As `gemm.multiply`, to the bit: each thread a run of row blocks."""
    blocks = runs[:, 1].sum()
    for n in prange(threads):
        start = 0
        for r in range(len(runs)):
            stop = start + runs[r, 1]
            first, last = max(start, n * blocks // threads), min(stop, (n + 1) * blocks // threads)
            at = runs[r, 0] - start * size
            if count == 1:
                single(isa, fmt, at, size, x, 0, y, add, first, last)
            else:
                multiply_blocks(isa, fmt, at, size, x, count, y, stride, add, first, last)
            start = stop


@apart
def single_gate(isa, fmt, gates, ups, size, x, row, y, first, last):
    """`gemm.gate_blocks` of one activation row; y: address of the row."""
    for b in range(first, last):
        value = silu(block(isa, fmt, ONE, gates + b * size, x, row))
        store_f(y + 64 * b, 0, mul_f(value, block(isa, fmt, ONE, ups + b * size, x, row)))


@apart
def gate_blocks(isa, fmt, gates, ups, size, x, count, y, stride, first, last):
    """As `gemm.gate_blocks`, for more than one activation row, four at a time."""
    for b in range(first, last):
        for row in range(0, count, 4):
            value = silu(block(isa, fmt, FOUR, gates + b * size, x, row))
            value = mul_f(value, block(isa, fmt, FOUR, ups + b * size, x, row))
            store_f(y + 64 * b + row * stride, stride, value)


@kept
def multiply_rows(isa, fmt, mode, packed, columns, x, count, y, threads):
    """y = W x from Python: packed (row blocks, bytes) weights of `columns` columns, `count` rows of x and y.

    x and y are float32 with rows padded to a multiple of four (unless there is one); the columns of x are padded with
    zeros to a multiple of 128, those of y to whole row blocks.
    """
    a = activate(mode, fmt, x, columns, 0, count, threads)
    runs = np.array([[address(packed), packed.shape[0]]])
    multiply(isa, fmt, runs, packed.shape[1], a, count, address(y), 4 * y.shape[1], False, threads)
