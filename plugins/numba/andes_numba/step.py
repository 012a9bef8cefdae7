"""One pass of Qwen3 over new rows, as one compiled function: norms, products, attention, SwiGLU, head.

Buffers hold float32 rows padded to 128 columns of zeros, and several rows padded to a multiple of four. Every row is
computed in the same order however many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from .activations import activate, address, inline
from .attention import look_rows, place_rows
from .machine import kept
from .product import multiply, multiply_gated
from .simd import ONE, fma, load_f, mul_f, splat_f, store_f, total_f, zeros_f


class Sizes(NamedTuple):
    """Of a Qwen3."""

    layers: int
    width: int
    q_heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int


class Weights(NamedTuple):
    """Addresses and norms; whoever calls keeps the arrays behind the addresses.

    products: (layers, 4) addresses of q-k-v, output, gate-up (row blocks alternate) and down; blocks, block_bytes: (4,)
    of each. head: address, row blocks and bytes per block of the head. norms: (layers, 2, width) before attention and
    before the MLP; head_norms: (layers, 2, d) of queries and keys; last: (width,) norm.
    """

    products: np.ndarray
    blocks: np.ndarray
    block_bytes: np.ndarray
    head: np.ndarray
    norms: np.ndarray
    head_norms: np.ndarray
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


@njit(parallel=True, nogil=True)
def norm_many(x, weight, out, size, eps, count, threads):
    """`norm_row` for `count` rows."""
    for n in prange(threads):
        for t in range(n * count // threads, (n + 1) * count // threads):
            norm_row(address(x[t]), address(weight), address(out[t]), size, eps)


@inline
def norm(x, weight, out, size, eps, count, threads):
    """RMSNorm of rows; one row is not worth a parallel region."""
    if count == 1:
        norm_row(address(x), address(weight), address(out), size, eps)
    else:
        norm_many(x, weight, out, size, eps, count, threads)


@kept
def forward(isa, body, head, mode, kv, sizes, weights, store, x, count, cos, sin, queries, first, logits, threads):
    """Run `count` rows of embeddings x (padded rows, padded width) through the model, in place.

    Keys and values are written behind those in the store (whose counts the caller raises). x becomes the hidden rows
    after the last norm, logits (rows, padded vocabulary) those of the rows from `first` (0, or the last) on. cos and
    sin (T, d / 2) belong to the positions; queries (layers, T, Hq * d), or a size of zero, receives rotated queries.
    """
    _, width, q_heads, kv_heads, size, inner, _ = sizes
    heads = (q_heads, kv_heads, size)
    products, blocks, lengths = weights.products, weights.blocks, weights.block_bytes
    rows = x.shape[0]
    normed = np.zeros(x.shape, np.float32)
    qkv = np.empty((rows, (q_heads + 2 * kv_heads) * size), np.float32)
    mixed = np.zeros((rows, (q_heads * size + 127) // 128 * 128), np.float32)
    gated = np.zeros((rows, (inner + 127) // 128 * 128), np.float32)
    for n in range(sizes.layers):
        norm(x, weights.norms[n, 0], normed, width, weights.eps, count, threads)
        a = activate(mode, body, normed, width, 0, count, threads)
        multiply(
            isa, body, products[n, 0], blocks[0], lengths[0], a, count, address(qkv), 4 * qkv.shape[1], False, threads
        )
        place_rows(kv, n, store, qkv, count, heads, weights.head_norms[n], cos, sin, weights.eps, queries, threads)
        look_rows(kv, n, store, qkv, count, heads, mixed, threads)
        b = activate(mode, body, mixed, q_heads * size, 0, count, threads)
        multiply(isa, body, products[n, 1], blocks[1], lengths[1], b, count, address(x), 4 * x.shape[1], True, threads)
        norm(x, weights.norms[n, 1], normed, width, weights.eps, count, threads)
        c = activate(mode, body, normed, width, 0, count, threads)
        multiply_gated(
            isa, body, products[n, 2], blocks[2] // 2, lengths[2], c, count, address(gated), 4 * gated.shape[1], threads
        )
        d = activate(mode, body, gated, inner, 0, count, threads)
        multiply(isa, body, products[n, 3], blocks[3], lengths[3], d, count, address(x), 4 * x.shape[1], True, threads)
    norm(x, weights.last, normed, width, weights.eps, count, threads)
    for t in range(count):
        for j in range(width):
            x[t, j] = normed[t, j]
    e = activate(mode, head, x, width, first, count - first, threads)
    multiply(
        isa, head, weights.head[0], weights.head[1], weights.head[2], e, count - first, address(logits),
        4 * logits.shape[1], False, threads,
    )  # fmt: skip
