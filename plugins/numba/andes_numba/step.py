"""One pass of a decoder over new rows, as one compiled function: norms, products, attention, SwiGLU, head.

Buffers hold float32 rows padded to 128 columns of zeros, and several rows padded to a multiple of four. Every row is
computed in the same order however many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .activations import address, copy_rows, inline, norm_row, space, take
from .apart import apart
from .block_attention import attend_rows, desks, longest, row_groups, sights
from .gemm import multiply, multiply_gated
from .lora import adapt, gate_rows
from .machine import kept


class Weights(NamedTuple):
    """Addresses and norms; whoever calls keeps the arrays behind the addresses.

    products: (layers, 7, 2) address and row blocks of q, k, v, output, gate, up and down; sizes: (7,) bytes per row
    block of each. head: (1, 2) as products; head_size: bytes per row block. norms: (layers, 2, width) before attention
    and before the MLP; head_norms: (layers, 2, d) of queries and keys, biases: (layers, features of q, k and v), both
    without numbers where a model has none; last: (width,) norm.
    """

    products: np.ndarray
    sizes: np.ndarray
    head: np.ndarray
    head_size: np.int64
    norms: np.ndarray
    head_norms: np.ndarray
    biases: np.ndarray
    last: np.ndarray
    eps: np.float32


class Store(NamedTuple):
    """Stored rows of S sessions, and where T new rows belong.

    addresses: (S, 4) of keys, values and their scales. starts, counts: (S, layers, Hkv) first stored row of each head
    and their number, `pending` (S,) uncommitted ones included. owners, ranks: (T,) session of a new row, and its place
    among the new rows of that session. visible: (T, …) 1 where a row sees an uncommitted row of its session, old ones
    first.
    """

    addresses: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    pending: np.ndarray
    owners: np.ndarray
    ranks: np.ndarray
    visible: np.ndarray


def padded(columns: int) -> int:
    """Columns of a buffer."""
    return -(-columns // 128) * 128


def padded_rows(count: int) -> int:
    """Rows of a buffer."""
    return count if count == 1 else -(-count // 4) * 4


@apart
def ready_row(mode, fmt, source, weight, eps, normed, x, row):
    """Row `row` of activations x from numbers at an address, normalised (to another address) if there are weights."""
    if weight.size:
        norm_row(source, address(weight), normed, weight.size, eps)
        take(mode, fmt, normed, x, row)
    else:
        take(mode, fmt, source, x, row)


@njit(parallel=True, nogil=True)
def _ready_many(mode, fmt, source, weight, eps, normed, x, count, threads):
    for n in prange(threads):
        for t in range(n * count // threads, (n + 1) * count // threads):
            ready_row(mode, fmt, address(source[t]), weight, eps, address(normed[t]), x, t)


@inline
def ready(mode, fmt, source, weight, eps, normed, x, count, threads):
    """Activations x (`space`) from rows, normalised if there are weights; one row is not worth a parallel region."""
    if count == 1:
        ready_row(mode, fmt, address(source), weight, eps, address(normed), x, 0)
    else:
        _ready_many(mode, fmt, source, weight, eps, normed, x, count, threads)


@njit
def show(taps, layer, x, seen):
    """Copy what enters a layer to where it is wanted: x (rows, width) -> seen (taps, T, width)."""
    for n in range(len(taps)):
        if taps[n] == layer:
            copy_rows(x, seen[n], seen.shape[1], seen.shape[2])


@kept
def forward(
    isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries, read, taps, seen, logits, threads
):  # fmt: skip
    """Run `count` rows of embeddings x (padded rows, padded width) through the model, in place.

    formats: of q-k-v, output, gate-up, down and head. lora: the rows' adapters.
    Keys and values are written behind those in the store (whose counts the caller raises). x becomes the hidden rows
    after the last norm, logits (rows, padded vocabulary) those of the rows `read` (n,). seen (taps, T, width) receives
    what enters the layers `taps`; as many layers as there are stands for the last norm. cos and
    sin (T, d / 2) belong to the positions; queries (layers, T, Hq * d), or a size of zero, receives rotated queries.
    """
    _, width, q_heads, kv_heads, size, inner, _ = sizes
    heads = (q_heads, kv_heads, size)
    bytes_ = weights.sizes
    rows = x.shape[0]
    normed = np.zeros(x.shape, np.float32)
    qkv = np.empty((rows, (q_heads + 2 * kv_heads) * size), np.float32)
    mixed = np.zeros((rows, (q_heads * size + 127) // 128 * 128), np.float32)
    gated = np.zeros((rows, (inner + 127) // 128 * 128), np.float32)
    a, b = space(mode, formats[0], width, rows), space(mode, formats[1], q_heads * size, rows)
    c, d = space(mode, formats[2], width, rows), space(mode, formats[3], inner, rows)
    many = len(read)
    e = space(mode, formats[4], width, 1 if many == 1 else (many + 3) // 4 * 4)
    apart = len(lora.rows) > 0
    low = np.empty((rows if len(lora.rows) else 0, 3, lora.most), np.float32)
    both = np.empty((rows if apart else 0, 2 * gated.shape[1]), np.float32)
    keys, groups, sight = longest(store) + count, row_groups(store, count, heads), sights(store, count)
    desk, none, eps, edges = desks(heads, keys, threads), weights.last[:0], weights.eps, np.array([0, 3, 4, 6, 7])
    for n in range(sizes.layers):
        show(taps, n, x, seen)
        products, used, norms = weights.products[n], lora.used[n], weights.norms[n]
        ready(mode, formats[0], x, norms[0], eps, normed, a, count, threads)
        multiply(isa, formats[0], products[:3], bytes_[0], a, count, address(qkv), 4 * qkv.shape[1], False, threads)
        if used[0]:
            adapt(mode, lora, n, edges[0], edges[1], normed, qkv, low, count, threads)
        attend_rows(
            kv, n, store, qkv, count, groups, sight, heads, keys, (weights.head_norms[n], weights.biases[n]), cos, sin,
            eps, queries, desk, mixed, threads,
        )  # fmt: skip
        ready(mode, formats[1], mixed, none, eps, mixed, b, count, threads)
        multiply(isa, formats[1], products[3:4], bytes_[3], b, count, address(x), 4 * x.shape[1], True, threads)
        if used[1]:
            adapt(mode, lora, n, edges[1], edges[2], mixed, x, low, count, threads)
        ready(mode, formats[2], x, norms[1], eps, normed, c, count, threads)
        if apart:
            # adapters add to both before one gates the other
            to, stride = address(both), 8 * gated.shape[1]
            multiply(isa, formats[2], products[4:5], bytes_[4], c, count, to, stride, False, threads)
            multiply(isa, formats[2], products[5:6], bytes_[5], c, count, to + stride // 2, stride, False, threads)
            if used[2]:
                adapt(mode, lora, n, edges[2], edges[3], normed, both, low, count, threads)
            gate_rows(both, gated, (inner + 15) // 16 * 16, count, threads)
        else:
            to, stride = address(gated), 4 * gated.shape[1]
            multiply_gated(isa, formats[2], products[4:6], bytes_[4], c, count, to, stride, threads)
        ready(mode, formats[3], gated, none, eps, gated, d, count, threads)
        multiply(isa, formats[3], products[6:], bytes_[6], d, count, address(x), 4 * x.shape[1], True, threads)
        if used[3]:
            adapt(mode, lora, n, edges[3], edges[4], gated, x, low, count, threads)
    show(taps, sizes.layers, x, seen)
    for t in range(count):
        norm_row(address(x[t]), address(weights.last), address(x[t]), width, eps)
    last = np.zeros((1 if many == 1 else (many + 3) // 4 * 4, x.shape[1]), np.float32)
    for t in range(many):
        copy_rows(x[read[t] :], last[t:], 1, x.shape[1])
    ready(mode, formats[4], last, none, eps, last, e, many, threads)
    to, stride = address(logits), 4 * logits.shape[1]
    multiply(isa, formats[4], weights.head, weights.head_size, e, many, to, stride, False, threads)
