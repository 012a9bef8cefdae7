"""Attention of new rows over a store of keys and values whose heads may hold different rows.

A row sees all committed rows of its head, then its ancestors among the uncommitted ones, packed together in ascending
order before anything is added up: a path through a token tree gives the bits of the same path as a chain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .activations import address, exp, inline, norm_row
from .apart import apart
from .simd import (
    EIGHT,
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
    store_totals,
    sub_f,
    total_f,
    zeros_f,
)  # fmt: skip

NUMBER_BYTES = {"f32": 4, "f16": 2, "int8": 1}
"""Bytes of one number of a key or value; "int8" adds a float32 scale per row."""


def load_kv(kv: Any, rows: Any, at: int, column: int) -> Any:
    """Vectors of sixteen numbers of a stored row, from `column` on, as float32 (int8: without the row's scale)."""
    raise NotImplementedError("compiled code only")


def load_rows(kv: Any, rows: Any, at: int, column: int, stride: int) -> Any:
    """One vector of `load_kv` each of several stored rows."""
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


@overload(load_rows, jit_options={"forceinline": True})
def _load_rows(kv, rows, at, column, stride):
    load = {"f32": load_f, "f16": load_half, "int8": load_bytes}[kv.value]
    width = NUMBER_BYTES[kv.value]
    return lambda kv, rows, at, column, stride: load(rows, at + width * column, stride)


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
def rotate(x, cos, sin):
    """The rotary embedding of one head's (d,) values with (d / 2,) tables; in place."""
    at, half = address(x), x.size // 2
    whole = half // 16 * 16
    for j in range(0, whole, 16):
        left, right = at + 4 * j, at + 4 * (half + j)
        low, high = load_f(ONE, left, 0), load_f(ONE, right, 0)
        across, along = load_f(ONE, address(cos) + 4 * j, 0), load_f(ONE, address(sin) + 4 * j, 0)
        store_f(left, 0, sub_f(mul_f(low, across), mul_f(high, along)))
        store_f(right, 0, add_f(mul_f(high, across), mul_f(low, along)))
    for j in range(whole, half):
        low, high = x[j], x[half + j]
        x[j] = low * cos[j] - high * sin[j]
        x[half + j] = high * cos[j] + low * sin[j]


@inline
def settle(x, bias, norm, eps):
    """One head's (d,) values from its matrix: plus their biases, then RMSNorm, each if there is one; in place."""
    at = address(x)
    if bias.size:
        for j in range(0, x.size, 16):
            store_f(at + 4 * j, 0, add_f(load_f(ONE, at + 4 * j, 0), load_f(ONE, address(bias) + 4 * j, 0)))
    if norm.size:
        norm_row(at, address(norm), at, x.size, eps)


@inline
def query(queries, layer, t):
    """Where the rotated queries of a row go; no numbers if nobody wants them."""
    return queries[min(layer, len(queries) - 1), min(t, queries.shape[1] - 1)]


@apart
def place(kv, layer, store, t, head, qkv, heads, own, cos, sin, eps, queries):
    """Biases, norms, positions for new row t of one KV head: its queries stay in `qkv`, key and value go to the store.

    own: of the layer, norms (2, d) of queries and keys, and biases (features of `qkv`,); without numbers where a model
    has none.
    """
    q_heads, kv_heads, size = heads
    norms, biases = own
    s = store.owners[t]
    places = store.addresses[s]
    keys, values, key_scales, value_scales = places[0], places[1], places[2], places[3]
    row = store.starts[s, layer, head] + store.counts[s, layer, head] + store.ranks[t]
    per_head = q_heads // kv_heads
    for r in range(head * per_head, (head + 1) * per_head):
        q = qkv[r * size : (r + 1) * size]
        settle(q, biases[r * size : (r + 1) * size], norms[0], eps)
        rotate(q, cos, sin)
        if queries.size:
            for j in range(size):
                queries[r * size + j] = q[j]
    first = (q_heads + head) * size
    last = first + kv_heads * size
    k, v = qkv[first : first + size], qkv[last : last + size]
    settle(k, biases[first : first + size], norms[1], eps)
    rotate(k, cos, sin)
    settle(v, biases[last : last + size], norms[0, :0], eps)
    offset = row * row_bytes(kv, size)
    store_kv(kv, keys + offset, key_scales + 4 * row, address(k), size)
    store_kv(kv, values + offset, value_scales + 4 * row, address(v), size)


# ---------------------------------------------------------------- a row looks at others


@inline
def score(kv, keys, scales, row, q, size, factor, scores):
    """factor * q · key of one stored row, to an address."""
    at, products = keys + row * row_bytes(kv, size), zeros_f(ONE)
    for j in range(0, size, 16):
        products = fma(load_kv(kv, ONE, at, j), load_f(ONE, q + 4 * j, 0), products)
    store_f32(scores, total_f(products) * row_scale(kv, scales, row) * factor)


@inline
def score_run(kv, keys, scales, start, count, first, second, size, factor, scores):
    """`score` of `count` rows from `start` on for two queries, which share what is loaded."""
    stride, whole = row_bytes(kv, size), count // 8 * 8
    one, other = address(scores[0]), address(scores[1])
    for m in range(0, whole, 8):
        left, right, at = zeros_f(EIGHT), zeros_f(EIGHT), keys + (start + m) * stride
        for j in range(0, size, 16):
            key = load_rows(kv, EIGHT, at, j, stride)
            left = fma(key, load_f(ONE, first + 4 * j, 0), left)
            right = fma(key, load_f(ONE, second + 4 * j, 0), right)
        store_totals(one + 4 * m, left)
        store_totals(other + 4 * m, right)
    for m in range(whole):
        scale = row_scale(kv, scales, start + m)
        scores[0, m] = scores[0, m] * scale * factor
        scores[1, m] = scores[1, m] * scale * factor
    for m in range(whole, count):
        score(kv, keys, scales, start + m, first, size, factor, one + 4 * m)
        score(kv, keys, scales, start + m, second, size, factor, other + 4 * m)


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
def weigh(kv, width, values, scales, start, committed, visible, size, scores, column, first, second, outs):
    """For two queries: factor * sum of scores * stored values, `width` (ONE or EIGHT) vectors from `column` on."""
    left, right, stride = zeros_f(width), zeros_f(width), row_bytes(kv, size)
    for m in range(committed):
        value = load_kv(kv, width, values + (start + m) * stride, column)
        scale = row_scale(kv, scales, start + m)
        left = fma(value, splat_f(scores[0, m] * scale), left)
        right = fma(value, splat_f(scores[1, m] * scale), right)
    m = committed
    for p in range(visible.size):
        if visible[p]:
            value = load_kv(kv, width, values + (start + committed + p) * stride, column)
            scale = row_scale(kv, scales, start + committed + p)
            left = fma(value, splat_f(scores[0, m] * scale), left)
            right = fma(value, splat_f(scores[1, m] * scale), right)
            m += 1
    store_f(outs[0] + 4 * column, 64, mul_f(left, splat_f(first)))
    store_f(outs[1] + 4 * column, 64, mul_f(right, splat_f(second)))


@apart
def look(kv, layer, store, t, head, qkv, heads, scores, out):
    """Attention of new row t over the stored rows it sees of one KV head, into `out` (Hq * d,).

    Queries go in pairs, since reading keys and values is what takes long; the last of an odd number is its own partner.
    scores: (2, …) room for every stored row, and sixteen more.
    """
    q_heads, kv_heads, size = heads
    s = store.owners[t]
    places = store.addresses[s]
    keys, values, key_scales, value_scales = places[0], places[1], places[2], places[3]
    start, committed = store.starts[s, layer, head], store.counts[s, layer, head] - store.pending[s]
    visible = store.visible[t]
    per_head, factor = q_heads // kv_heads, np.float32(1) / np.sqrt(np.float32(size))
    for r in range(head * per_head, (head + 1) * per_head, 2):
        pair = min(r + 1, (head + 1) * per_head - 1)
        first, second = address(qkv) + 4 * r * size, address(qkv) + 4 * pair * size
        score_run(kv, keys, key_scales, start, committed, first, second, size, factor, scores)
        count = committed
        for p in range(visible.size):
            if visible[p]:
                row = start + committed + p
                score(kv, keys, key_scales, row, first, size, factor, address(scores[0]) + 4 * count)
                score(kv, keys, key_scales, row, second, size, factor, address(scores[1]) + 4 * count)
                count += 1
        one = np.float32(1) / softmax(scores[0], count)
        other = np.float32(1) / softmax(scores[1], count)
        outs, column = (address(out) + 4 * r * size, address(out) + 4 * pair * size), 0
        while column + 128 <= size:
            weigh(kv, EIGHT, values, value_scales, start, committed, visible, size, scores, column, one, other, outs)
            column += 128
        while column < size:
            weigh(kv, ONE, values, value_scales, start, committed, visible, size, scores, column, one, other, outs)
            column += 16
