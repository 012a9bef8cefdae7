"""Attention of new rows over a store of keys and values whose heads may hold different rows.

A row sees all committed rows of its head, then its ancestors among the uncommitted ones, packed together in ascending
order before anything is added up: a path through a token tree gives the bits of the same path as a chain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numba.extending import overload

from .activations import address, exp, inline
from .simd import (
    FOUR,
    ONE,
    abs_f,
    add_f,
    fma,
    largest_f,
    load_bytes,
    load_f,
    load_f32,
    load_half,
    max_f,
    mul_f,
    round_i,
    splat_f,
    store_bytes,
    store_f,
    store_f32,
    store_half,
    sub_f,
    total_f,
    zeros_f,
)  # fmt: skip

NUMBER_BYTES = {"f32": 4, "f16": 2, "int8": 1}
"""Bytes of one number of a key or value; "int8" adds a float32 scale per row."""


def load_kv(kv: Any, rows: Any, at: int, column: int) -> Any:
    """Vectors of sixteen numbers of a stored row, from `column` on, as float32 (int8: without the row's scale)."""
    raise NotImplementedError("compiled code only")


def store_kv(kv: Any, at: int, scale: int, values: int, size: int) -> None:
    """Write `size` float32 values as a stored row at `at`; int8 writes its scale too."""
    raise NotImplementedError("compiled code only")


def row_scale(kv: Any, scales: int, row: int) -> float:
    """The scale of a stored row; 1 but for int8."""
    raise NotImplementedError("compiled code only")


def row_bytes(kv: Any, size: int) -> int:
    """Bytes of a stored row of `size` numbers."""
    raise NotImplementedError("compiled code only")


@overload(load_kv, jit_options={"forceinline": True})
def _load_kv(kv, rows, at, column):
    load = {"f32": load_f, "f16": load_half, "int8": load_bytes}[kv.value]
    width = NUMBER_BYTES[kv.value]

    def read(kv, rows, at, column):
        return load(rows, at + width * column, 16 * width)

    return read


@overload(store_kv, jit_options={"forceinline": True})
def _store_kv(kv, at, scale, values, size):
    if kv.value == "int8":
        return _store_int8
    store, width = (store_f if kv.value == "f32" else store_half), NUMBER_BYTES[kv.value]

    def write(kv, at, scale, values, size):
        for j in range(0, size, 16):
            store(at + width * j, 0, load_f(ONE, values + 4 * j, 0))

    return write


def _store_int8(kv, at, scale, values, size):
    most = zeros_f(ONE)
    for j in range(0, size, 16):
        most = max_f(most, abs_f(load_f(ONE, values + 4 * j, 0)))
    largest = largest_f(most)
    inverse = np.float32(127) / largest if largest > 0 else np.float32(0)
    for j in range(0, size, 16):
        store_bytes(at + j, 0, round_i(mul_f(load_f(ONE, values + 4 * j, 0), splat_f(inverse))))
    store_f32(scale, largest / np.float32(127))


@overload(row_scale, jit_options={"forceinline": True})
def _row_scale(kv, scales, row):
    if kv.value == "int8":
        return lambda kv, scales, row: load_f32(scales + 4 * row)
    return lambda kv, scales, row: np.float32(1)


@overload(row_bytes, jit_options={"forceinline": True})
def _row_bytes(kv, size):
    width = NUMBER_BYTES[kv.value]
    return lambda kv, size: size * width


# ---------------------------------------------------------------- a new row


@inline
def rotate(x, weight, cos, sin, eps):
    """RMSNorm of one head's (d,) values with weights (d,), then the rotary embedding with (d / 2,) tables; in place."""
    size, at = x.size, address(x)
    squares = zeros_f(ONE)
    for j in range(0, size, 16):
        part = load_f(ONE, at + 4 * j, 0)
        squares = fma(part, part, squares)
    factor = np.float32(1) / np.sqrt(total_f(squares) / np.float32(size) + eps)
    half = size // 2
    for j in range(half):
        low, high = x[j] * factor * weight[j], x[half + j] * factor * weight[half + j]
        x[j] = low * cos[j] - high * sin[j]
        x[half + j] = high * cos[j] + low * sin[j]


@inline
def place(kv, store, head, row, qkv, heads, norms, cos, sin, eps, queries):
    """Norms and positions for one new row of one KV head: its queries stay in `qkv`, key and value go to the store."""
    keys, values, key_scales, value_scales = store[0], store[1], store[2], store[3]
    q_heads, kv_heads, size = heads
    per_head = q_heads // kv_heads
    for r in range(head * per_head, (head + 1) * per_head):
        q = qkv[r * size : (r + 1) * size]
        rotate(q, norms[0], cos, sin, eps)
        if queries.size:
            for j in range(size):
                queries[r * size + j] = q[j]
    first = (q_heads + head) * size
    k = qkv[first : first + size]
    rotate(k, norms[1], cos, sin, eps)
    v = address(qkv) + 4 * (first + kv_heads * size)
    offset = row * row_bytes(kv, size)
    store_kv(kv, keys + offset, key_scales + 4 * row, address(k), size)
    store_kv(kv, values + offset, value_scales + 4 * row, v, size)


# ---------------------------------------------------------------- a row looks at others


@inline
def score(kv, keys, scales, rows, q, size, factor, scores):
    """scores = factor * q · key of each row."""
    for m in range(rows.size):
        at = keys + rows[m] * row_bytes(kv, size)
        products = zeros_f(ONE)
        for j in range(0, size, 16):
            products = fma(load_f(ONE, q + 4 * j, 0), load_kv(kv, ONE, at, j), products)
        scores[m] = total_f(products) * row_scale(kv, scales, rows[m]) * factor


@inline
def softmax(scores, count):
    """exp(score - largest) in place for `count` scores, padded to sixteen with zeros -> their sum."""
    at, padded = address(scores), (count + 15) // 16 * 16
    for m in range(count, padded):
        scores[m] = -np.inf
    most = load_f(ONE, at, 0)
    for m in range(16, padded, 16):
        most = max_f(most, load_f(ONE, at + 4 * m, 0))
    largest = splat_f(largest_f(most))
    total = zeros_f(ONE)
    for m in range(0, padded, 16):
        part = exp(sub_f(load_f(ONE, at + 4 * m, 0), largest))
        store_f(at + 4 * m, 0, part)
        total = add_f(total, part)
    return total_f(total)


@inline
def weigh(kv, width, values, scales, rows, size, scores, column, factor, out):
    """out = factor * sum of scores * stored values, for `width` (ONE or FOUR) vectors from `column` on."""
    total = zeros_f(width)
    for m in range(rows.size):
        weight = splat_f(scores[m] * row_scale(kv, scales, rows[m]))
        total = fma(load_kv(kv, width, values + rows[m] * row_bytes(kv, size), column), weight, total)
    store_f(out + 4 * column, 64, mul_f(total, splat_f(factor)))


@inline
def look(kv, store, head, rows, qkv, heads, scores, out):
    """Attention of one new row's queries of one KV head over stored `rows`, into `out` (Hq * d,)."""
    keys, values, key_scales, value_scales = store[0], store[1], store[2], store[3]
    q_heads, kv_heads, size = heads
    per_head, factor = q_heads // kv_heads, np.float32(1) / np.sqrt(np.float32(size))
    for r in range(head * per_head, (head + 1) * per_head):
        score(kv, keys, key_scales, rows, address(qkv) + 4 * r * size, size, factor, scores)
        inverse = np.float32(1) / softmax(scores, rows.size)
        to, column = address(out) + 4 * r * size, 0
        while column + 64 <= size:
            weigh(kv, FOUR, values, value_scales, rows, size, scores, column, inverse, to)
            column += 64
        while column < size:
            weigh(kv, ONE, values, value_scales, rows, size, scores, column, inverse, to)
            column += 16


# ---------------------------------------------------------------- all rows, all heads


@inline
def seen(start, committed, visible, rows):
    """Stored rows that a new row sees: committed ones, then those marked in `visible` -> filled part of `rows`."""
    for m in range(committed):
        rows[m] = start + m
    count = committed
    for p in range(visible.size):
        if visible[p]:
            rows[count] = start + committed + p
            count += 1
    return rows[:count]


@njit(parallel=True, nogil=True)
def place_rows(kv, layer, store, qkv, count, heads, norms, cos, sin, eps, queries, threads):
    """`place` for `count` new rows of every KV head, behind the stored rows of their sessions."""
    kv_heads = heads[1]
    items = count * kv_heads
    for n in prange(threads):
        for item in range(n * items // threads, (n + 1) * items // threads):
            t, h = item // kv_heads, item % kv_heads
            s = store.owners[t]
            row = store.starts[s, layer, h] + store.counts[s, layer, h] + store.ranks[t]
            q = queries[min(layer, len(queries) - 1), min(t, queries.shape[1] - 1)]
            place(kv, store.addresses[s], h, row, qkv[t], heads, norms, cos[t], sin[t], eps, q)


@njit(parallel=True, nogil=True)
def look_rows(kv, layer, store, qkv, count, heads, out, threads):
    """`look` for `count` new rows of every KV head."""
    kv_heads = heads[1]
    items = count * kv_heads
    longest = 0
    for s in range(len(store.counts)):
        for h in range(kv_heads):
            longest = max(longest, store.counts[s, layer, h] + count)
    for n in prange(threads):
        rows, scores = np.empty(longest, np.int64), np.empty(longest + 16, np.float32)
        for item in range(n * items // threads, (n + 1) * items // threads):
            t, h = item // kv_heads, item % kv_heads
            s = store.owners[t]
            committed = store.counts[s, layer, h] - store.pending[s]
            chosen = seen(store.starts[s, layer, h], committed, store.visible[t], rows)
            look(kv, store.addresses[s], h, chosen, qkv[t], heads, scores, out[t])
