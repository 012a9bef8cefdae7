"""Activations: int8 with a scale per group of columns, exact float32, and what happens to them between products."""

from __future__ import annotations

from typing import Any

import numpy as np
from andes_packing.formats import FORMATS, LANES, Half, OneOfFour
from numba import njit, prange
from numba.extending import overload

from .simd import (
    ONE,
    abs_f,
    add_f,
    add_i,
    bits_f,
    choose_f,
    div_f,
    fma,
    largest_f,
    less_i,
    load_f,
    max_f,
    min_f,
    mul_f,
    round_i,
    shift_left,
    splat_f,
    splat_i,
    store_bytes,
    store_f,
    store_f32,
    store_i32,
    sub_f,
    to_f,
    total_f,
    total_i,
    zeros_f,
    zeros_i,
)

bare = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For functions that only compiled ones call: without the code that would let Python call them."""

inline = njit(forceinline=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@inline
def address(array):
    """Where an array's numbers start."""
    return np.int64(array.ctypes.data)


@inline
def copy_rows(x, to, count, columns):
    """What `to[:count, :columns] = x[:count, :columns]` does; that would compile the text of its error too: seconds."""
    for r in range(count):
        for j in range(columns):
            to[r, j] = x[r, j]


@inline
def norm_row(x, weight, out, size, eps):
    """RMSNorm of `size` numbers (a multiple of 16) at address x, with weights, to address out."""
    squares = zeros_f(ONE)
    for j in range(0, size, 16):
        part = load_f(ONE, x + 4 * j, 0)
        squares = fma(part, part, squares)
    factor = splat_f(np.float32(1) / np.sqrt(total_f(squares) / np.float32(size) + eps))
    for j in range(0, size, 16):
        scaled = mul_f(load_f(ONE, x + 4 * j, 0), factor)
        store_f(out + 4 * j, 0, mul_f(scaled, load_f(ONE, weight + 4 * j, 0)))


@inline
def exp(x):
    """e**x, within 2 units in the last place; below -87 it is 0."""
    small = choose_f(less_i(x, splat_f(np.float32(-87.0))), splat_f(np.float32(0)), splat_f(np.float32(1)))
    x = min_f(max_f(x, splat_f(np.float32(-87.0))), splat_f(np.float32(88.0)))
    n = round_i(mul_f(x, splat_f(np.float32(1.4426950408889634))))
    power = to_f(n)
    x = fma(power, splat_f(np.float32(-0.693145751953125)), x)
    x = fma(power, splat_f(np.float32(-1.428606765330187e-06)), x)
    value = splat_f(np.float32(1.9875691500e-4))
    value = fma(value, x, splat_f(np.float32(1.3981999507e-3)))
    value = fma(value, x, splat_f(np.float32(8.3334519073e-3)))
    value = fma(value, x, splat_f(np.float32(4.1665795894e-2)))
    value = fma(value, x, splat_f(np.float32(1.6666665459e-1)))
    value = fma(value, x, splat_f(np.float32(5.0000001201e-1)))
    value = add_f(fma(value, mul_f(x, x), x), splat_f(np.float32(1)))
    return mul_f(mul_f(value, bits_f(shift_left(add_i(n, splat_i(127)), 23))), small)


@inline
def silu(x):
    """x / (1 + e**-x)."""
    return div_f(x, add_f(splat_f(np.float32(1)), exp(sub_f(splat_f(np.float32(0)), x))))


def raised(layout: Any) -> int:
    """What a format wants added to each code: 128 makes unsigned bytes of them, since 1:4 sparse weights are signed."""
    return 128 if isinstance(layout, OneOfFour) else 0


@inline
def quantise_row(values, groups, group, more, codes, scales, sums):
    """Float32 values -> int8 codes plus `more`, and per group a float32 scale and the int32 sum of its codes."""
    for g in range(groups):
        start = values + 4 * g * group
        most = zeros_f(ONE)
        for j in range(0, group, LANES):
            most = max_f(most, abs_f(load_f(ONE, start + 4 * j, 0)))
        largest = largest_f(most)
        inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
        total = zeros_i(ONE)
        for j in range(0, group, LANES):
            code = round_i(mul_f(load_f(ONE, start + 4 * j, 0), splat_f(inverse)))
            total = add_i(total, code)
            store_bytes(codes + g * group + j, 0, add_i(code, splat_i(more)))
        store_f32(scales + 4 * g, largest / np.float32(127))
        store_i32(sums + 4 * g, total_i(total))


def activate(mode: Any, fmt: Any, x: Any, columns: int, first: int, count: int, threads: int) -> Any:
    """Rows `first` … of float32 x (rows, columns and padding) as activations for a product.

    A tuple: mode, groups of columns, bytes per row, and three arrays: values, scales and sums of groups (the last two
    are empty where the values stay float32). Rows have to be padded to a multiple of four unless there is one.
    """
    raise NotImplementedError("compiled code only")


@overload(activate)
def _activate(mode, fmt, x, columns, first, count, threads):
    layout = FORMATS[fmt.value]
    group, more = layout.group, raised(layout)
    if mode.value == "exact" or isinstance(layout, Half):

        def as_they_are(mode, fmt, x, columns, first, count, threads):
            groups = (columns + group - 1) // group
            return mode, groups, 4 * x.shape[1], x[first:], np.empty((0, 0), np.float32), np.empty((0, 0), np.int32)

        return as_they_are

    def as_integers(mode, fmt, x, columns, first, count, threads):
        groups, padded = (columns + group - 1) // group, count if count == 1 else (count + 3) // 4 * 4
        codes, scales = np.zeros((padded, x.shape[1]), np.int8), np.zeros((padded, groups), np.float32)
        sums = np.zeros((padded, groups), np.int32)
        if count == 1:
            quantise_row(address(x[first]), groups, group, more, address(codes), address(scales), address(sums))
        else:
            quantise_rows(x[first:], count, groups, group, more, codes, scales, sums, threads)
        return mode, groups, x.shape[1], codes, scales, sums

    return as_integers


@njit(parallel=True, nogil=True)
def quantise_rows(x, count, groups, group, more, codes, scales, sums, threads):
    """`quantise_row` for `count` rows."""
    for n in prange(threads):
        for t in range(n * count // threads, (n + 1) * count // threads):
            quantise_row(address(x[t]), groups, group, more, address(codes[t]), address(scales[t]), address(sums[t]))


def space(mode: Any, fmt: Any, columns: int, rows: int) -> Any:
    """Room for `rows` rows of activations of a product, as the tuple that `activate` makes."""
    raise NotImplementedError("compiled code only")


def take(mode: Any, fmt: Any, values: int, x: Any, row: int) -> None:
    """Float32 values at an address, with zeros behind them up to a whole group, become row `row` of x (`space`)."""
    raise NotImplementedError("compiled code only")


@overload(space)
def _space(mode, fmt, columns, rows):
    layout = FORMATS[fmt.value]
    group, exact = layout.group, mode.value == "exact" or isinstance(layout, Half)
    kind, size = (np.float32, 4) if exact else (np.int8, 1)

    def make(mode, fmt, columns, rows):
        groups, padded = (columns + group - 1) // group, (columns + 127) // 128 * 128
        scaled = 0 if exact else rows
        scales, sums = np.zeros((scaled, groups), np.float32), np.zeros((scaled, groups), np.int32)
        return mode, groups, size * padded, np.zeros((rows, padded), kind), scales, sums

    return make


@overload(take, jit_options={"forceinline": True})
def _take(mode, fmt, values, x, row):
    layout = FORMATS[fmt.value]
    group, more = layout.group, raised(layout)
    if mode.value == "exact" or isinstance(layout, Half):

        def copy(mode, fmt, values, x, row):
            to = address(x[3][row])
            for j in range(0, x[3].shape[1], LANES):
                store_f(to + 4 * j, 0, load_f(ONE, values + 4 * j, 0))

        return copy

    def round_off(mode, fmt, values, x, row):
        quantise_row(values, x[1], group, more, address(x[3][row]), address(x[4][row]), address(x[5][row]))

    return round_off


@inline
def from_row(x, row):
    """Activations from a row on."""
    mode, groups, stride, values, scales, sums = x
    return mode, groups, stride, values[row:], scales[row:], sums[row:]
