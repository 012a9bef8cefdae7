"""Attention of patches to all patches of their image, a strip of 64 queries against a strip of 64 keys at a time.

After FlashAttention (Dao et al., arXiv 2205.14135): scores never leave the registers and one small buffer. As in
FlashAttention-4 the running maximum moves only when a score exceeds it by more than 2**8, so that what was added up is
seldom scaled anew. With scores "wide" (SageAttention, arXiv 2410.02367) queries and keys are int8 with a scale per row
and head, after the mean key of the image is taken away, which changes no weight; weights and values are bfloat16, or
float32 on processors that cannot multiply bfloat16. A query's result depends on nothing but its image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .activations import address, inline, quantise_row
from .simd import (
    FOUR,
    ONE,
    load_f,
    load_f32,
    load_i,
    mul_f,
    mul_i,
    splat_f,
    splat_i,
    store_f,
    store_f32,
    sub_f,
    total_f,
    zeros_f,
)
from .tile import (
    TILE,
    exceeds,
    load_tile,
    only_first,
    relative,
    row_maxima,
    spread_rows,
    step,
    store_brain,
    store_brain_pairs,
    store_tile,
    times_keys,
    weigh_tile,
    xor_i,
)

STRIP = 64
"""Patches computed at a time, and keys in a block."""

BYTES = {"wide": 1, "bf16": 2, "f32": 4}
"""Bytes of a number: int8 with a scale, bfloat16, float32."""

HEADROOM = np.float32(8)
"""Powers of two by which a score may exceed the running maximum."""


def encode_row(number: Any, values: int, groups: int, group: int, out: int, scales: int, sums: int) -> None:
    """Float32 values -> numbers; int8 with a scale and a sum per group, others have the scale 1 and the sum 0."""
    raise NotImplementedError("compiled code only")


@overload(encode_row, jit_options={"forceinline": True})
def _encode_row(number, values, groups, group, out, scales, sums):
    if number.value == "wide":

        def integers(number, values, groups, group, out, scales, sums):
            quantise_row(values, groups, group, 0, out, scales, sums)

        return integers
    if number.value == "bf16":

        def halves(number, values, groups, group, out, scales, sums):
            for j in range(0, groups * group, 16):
                store_brain(out + 2 * j, load_f(ONE, values + 4 * j, 0))
            for g in range(groups):
                store_f32(scales + 4 * g, np.float32(1))

        return halves

    def copies(number, values, groups, group, out, scales, sums):
        for j in range(0, groups * group, 16):
            store_f(out + 4 * j, 0, load_f(ONE, values + 4 * j, 0))
        for g in range(groups):
            store_f32(scales + 4 * g, np.float32(1))

    return copies


def width(number: Any) -> int:
    """Bytes of a number."""
    raise NotImplementedError("compiled code only")


@overload(width, jit_options={"forceinline": True})
def _width(number):
    size = BYTES[number.value]
    return lambda number: size


# ---------------------------------------------------------------- how keys and values lie


def flip(scores: Any, codes: int, count: int) -> None:
    """Signed bytes -> unsigned ones, 128 higher; other numbers stay."""
    raise NotImplementedError("compiled code only")


@overload(flip, jit_options={"forceinline": True})
def _flip(scores, codes, count):
    if scores.value != "wide":
        return lambda scores, codes, count: None

    def unsigned(scores, codes, count):
        for j in range(0, count, 64):
            store_f(codes + j, 0, xor_i(load_i(ONE, codes + j, 0), splat_i(-0x7F7F7F80)))

    return unsigned


@inline
def place_keys(scores, rows, stride, count, mean, heads, size, out, scales):
    """Keys of a block, float32 (count, heads * size), without their mean -> steps of 64 lanes for every head.

    out: per head `size` numbers for each of 64 keys; scales: (heads, 64), 0 where there is no key.
    """
    bytes_ = heads * size * width(scores)
    words, block = size * width(scores) // 4, 64 * size * width(scores)
    centred, codes = np.empty(heads * size, np.float32), np.empty(bytes_ + 64, np.uint8)
    each, sums = np.empty(heads, np.float32), np.empty(heads, np.int32)
    for lane in range(count):
        for j in range(0, heads * size, 16):
            less = sub_f(load_f(ONE, rows + lane * stride + 4 * j, 0), load_f(ONE, mean + 4 * j, 0))
            store_f(address(centred) + 4 * j, 0, less)
        encode_row(scores, address(centred), heads, size, address(codes), address(each), address(sums))
        flip(scores, address(codes), bytes_)
        for h in range(heads):
            store_f32(scales + 4 * (64 * h + lane), each[h])
            for s in range(words):
                word = load_f32(address(codes) + 4 * (words * h + s))
                store_f32(out + h * block + 256 * s + 4 * lane, word)


def place_values(values: Any, rows: int, stride: int, heads: int, size: int, out: int) -> None:
    """Values of a block, float32 (64, heads * size) -> per head and step of keys, columns padded to 64."""
    raise NotImplementedError("compiled code only")


@overload(place_values, jit_options={"forceinline": True})
def _place_values(values, rows, stride, heads, size, out):
    together = 2 if values.value == "bf16" else 1

    def place(values, rows, stride, heads, size, out):
        line = (size + 63) // 64 * 256
        for h in range(heads):
            for s in range(64 // together):
                at, to = rows + together * s * stride + 4 * h * size, out + (h * (64 // together) + s) * line
                for j in range(0, size, 16):
                    if together == 2:
                        store_brain_pairs(to + 4 * j, load_f(ONE, at + 4 * j, 0), load_f(ONE, at + stride + 4 * j, 0))
                    else:
                        store_f(to + 4 * j, 0, load_f(ONE, at + 4 * j, 0))

    return place


# ---------------------------------------------------------------- four queries and a block of keys


def start(scores: Any, sums: int, stride: int) -> Any:
    """What products of four queries begin with: minus 128 times the sums of their codes, or 0."""
    raise NotImplementedError("compiled code only")


@overload(start, jit_options={"forceinline": True})
def _start(scores, sums, stride):
    if scores.value == "wide":
        return lambda scores, sums, stride: mul_i(spread_rows(FOUR, FOUR, sums, stride), splat_i(-128))
    return lambda scores, sums, stride: zeros_f(TILE)


def as_floats(scores: Any, tile: Any, scales: int) -> Any:
    """Products times the scales of their keys."""
    raise NotImplementedError("compiled code only")


@overload(as_floats, jit_options={"forceinline": True})
def _as_floats(scores, tile, scales):
    if scores.value == "wide":
        return lambda scores, tile, scales: times_keys(tile, scales)
    return lambda scores, tile, scales: tile


@inline
def raise_maxima(tile, query, state, largest):
    """Move four running maxima up to these scores, and scale what was added up before."""
    _, _, _, factors, stride, _ = query
    lows, totals, out, line = state
    row_maxima(tile, largest)
    for r in range(4):
        old, new = load_f32(lows + 4 * r), load_f32(largest + 4 * r) * load_f32(factors + r * stride)
        if new > old:
            factor = splat_f(np.float32(2) ** max(old - new, np.float32(-126)))
            store_f32(lows + 4 * r, new)
            store_f(totals + 64 * r, 0, mul_f(load_f(ONE, totals + 64 * r, 0), factor))
            for j in range(0, line, 64):
                at = out + r * line + j
                store_f(at, 0, mul_f(load_f(ONE, at, 0), factor))


@inline
def look_at_block(isa, scores, values, query, block, state, buffer):
    """Scores of four queries with a block of keys, their weights, and the values so weighted, added to the state.

    query: addresses of codes, sums and factors, and their strides; words of a head. block: addresses of keys, their
    scales and values, and how many keys there are. state: addresses of the running maxima, of lanes of the sums of
    weights, and of what was added up, bytes of its rows. buffer: 64 floats for each of five rows.
    """
    codes, stride, sums, factors, step_, words = query
    keys, scales, v, there = block
    lows, totals, out, line = state
    products = start(scores, sums, step_)
    for s in range(words):
        products = step(isa, scores, FOUR, FOUR, products, codes + 4 * s, stride, keys + 256 * s, 64)
    tile = as_floats(scores, products, scales)
    if there < 64:
        tile = only_first(tile, there)
    above = relative(tile, factors, step_, lows)
    if exceeds(above, HEADROOM):
        raise_maxima(tile, query, state, buffer + 1024)
        above = relative(tile, factors, step_, lows)
    weigh_tile(values, above, totals, buffer, 256)
    steps = 16 * width(values)
    for j in range(0, line, 256):
        total = load_tile(FOUR, FOUR, out + j, line)
        for s in range(steps):
            total = step(isa, values, FOUR, FOUR, total, buffer + 4 * s, 256, v + s * line + j, 64)
        store_tile(FOUR, FOUR, out + j, line, total)


@inline
def attend(isa, scores, values, shape, queries, keys, v, counts, strip, first, last, out):
    """Attention of the queries of a strip to the keys of strips `first` to `last`, into out (64, columns) float32.

    shape: heads, size. queries: codes (S, 64, bytes), factors (S, 64, heads) float32 for scores in powers of two, sums
    (S, 64, heads). keys: codes (S, heads, bytes), scales (S, heads, 64). v: (S, heads, bytes). counts: (S,) patches.
    """
    heads, size = shape
    q_codes, q_factors, q_sums = queries
    k_codes, k_scales = keys
    line, count, bytes_ = (size + 63) // 64 * 256, counts[strip], size * width(scores)
    lows, totals = np.empty(64, np.float32), np.empty((64, 16), np.float32)
    added, buffer = np.empty((64, line // 4), np.float32), np.empty(64 * 5, np.float32)
    for h in range(heads):
        lows[:], totals[:], added[:] = np.float32(-1e30), np.float32(0), np.float32(0)
        for b in range(first, last):
            block = address(k_codes[b, h]), address(k_scales[b, h]), address(v[b, h]), counts[b]
            for r in range(0, count, 4):
                codes, place = address(q_codes[strip, r]) + h * bytes_, 4 * h
                sums, factors = address(q_sums[strip, r]) + place, address(q_factors[strip, r]) + place
                query = codes, q_codes.shape[2], sums, factors, 4 * heads, bytes_ // 4
                state = address(lows[r:]), address(totals[r]), address(added[r]), line
                look_at_block(isa, scores, values, query, block, state, address(buffer))
        for r in range(count):
            inverse = splat_f(np.float32(1) / total_f(load_f(ONE, address(totals[r]), 0)))
            for j in range(0, size, 16):
                value = mul_f(load_f(ONE, address(added[r]) + 4 * j, 0), inverse)
                store_f(address(out[r]) + 4 * (h * size + j), 0, value)
