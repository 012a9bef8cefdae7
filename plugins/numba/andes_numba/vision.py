"""A vision transformer and a projector as compiled functions: 64 patches at a time, through a whole half of a block.

Such a strip stays in the second-level cache from its norm to its product with the last matrix. Threads have strips of
their own and meet where attention needs every key of an image. Numbers are "wide" (int8 activations with a scale per
128 columns, weights in the format w8), "bf16" or "f32"; what is added up, norms and residuals are float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange
from numba.extending import overload

from . import gemm
from .activations import address, copy_rows, inline
from .apart import apart
from .machine import kept
from .simd import (
    FOUR,
    ONE,
    Tag,
    add_f,
    load_f,
    store_f,
    zeros_f,
)
from .tile import TILE, load_tile, step, store_tile
from .vision_attention import STRIP, attend, encode_row, place_keys, place_values, width
from .vision_rows import SWIGLU, activate_rows, norm, rotate

W8, INT8 = Tag("format", "w8"), Tag("mode", "int8")


class Shape(NamedTuple):
    """Of an encoder. `half` is half a head if positions are rotary, else 0."""

    layers: int
    width: int
    heads: int
    head: int
    norm: int
    activation: int
    half: int
    eps: np.float32


class Tower(NamedTuple):
    """Weights of an encoder; whoever calls keeps the memory behind the addresses.

    embed: (4,) and matrices: (layers, 5, 4): address, row blocks (a multiple of four), bytes per row block and address
    of the bias (0: none) of the patch embedding; of q-k-v, output, up, gate (0 row blocks: none) and down. norms:
    (layers, 2, 2, width) weights and biases of the norms of each block; embed_norm: (1 or 0, 2, width); last: (2,
    width).
    """

    embed: np.ndarray
    matrices: np.ndarray
    norms: np.ndarray
    embed_norm: np.ndarray
    last: np.ndarray


# ---------------------------------------------------------------- products of a strip


@inline
def operand(number, rows, columns):
    """Memory for rows of encoded activations: numbers, and scales and sums of groups of 128 columns."""
    codes = np.zeros((rows, columns * width(number)), np.int8)
    return codes, np.ones((rows, columns // 128), np.float32), np.zeros((rows, columns // 128), np.int32)


@inline
def encode(number, x, count, columns, to):
    """Rows of float32 (rows, columns and padding) -> an operand."""
    codes, scales, sums = to
    for r in range(count):
        encode_row(number, address(x[r]), columns // 128, 128, address(codes[r]), address(scales[r]), address(sums[r]))


def product(isa: Any, number: Any, matrix: Any, x: Any, count: int, y: Any, add: bool) -> None:
    """y (64, columns and padding) = W x + bias for `count` rows of an operand; `add` adds to y."""
    raise NotImplementedError("compiled code only")


@overload(product)
def _product(isa, number, matrix, x, count, y, add):
    if number.value == "wide":

        def integers(isa, number, matrix, x, count, y, add):
            codes, scales, sums = x
            a = INT8, scales.shape[1], codes.shape[1], codes, scales, sums
            stride = 4 * y.shape[1]
            for b in range(0, matrix[1], gemm.ACROSS):
                at, out = matrix[0] + b * matrix[2], address(y) + 64 * b
                gemm.strip(isa, W8, at, matrix[2], a, count, out, stride, add)
            add_bias(matrix, count, y)

        return integers

    def floats(isa, number, matrix, x, count, y, add):
        codes, stride, steps = x[0], 4 * y.shape[1], x[0].shape[1] // 4
        for b in range(0, matrix[1], 4):
            at = matrix[0] + b * matrix[2]
            for r in range(0, count, 4):
                here, values = address(y[r]) + 64 * b, address(codes[r])
                total = load_tile(FOUR, FOUR, here, stride) if add else zeros_f(TILE)
                for s in range(steps):
                    total = step(isa, number, FOUR, FOUR, total, values + 4 * s, codes.shape[1], at + 64 * s, matrix[2])
                store_tile(FOUR, FOUR, here, stride, total)
        add_bias(matrix, count, y)

    return floats


@inline
def add_bias(matrix, count, y):
    """y += bias, if there is one."""
    if matrix[3]:
        for r in range(count):
            for j in range(0, 64 * matrix[1], 64):
                at = address(y[r]) + j
                store_f(at, 0, add_f(load_f(ONE, at, 0), load_f(ONE, matrix[3] + j, 0)))


@apart
def feed(isa, number, activation, up, gate, down, x, count, inner, gates, small, y, add):
    """y = W_down activation(W_up x), with biases, for an operand x. inner, gates: (64, columns); small: an operand."""
    product(isa, number, up, x, count, inner, False)
    if activation == SWIGLU:
        product(isa, number, gate, x, count, gates, False)
    activate_rows(activation, inner, gates, count, 16 * up[1])
    encode(number, inner, count, inner.shape[1], small)
    product(isa, number, down, small, count, y, add)


# ---------------------------------------------------------------- the encoder


class Memory(NamedTuple):
    """Of one pass over S strips.

    x: (S, 64, columns) residual stream; keys: (S, 64, width) float32 and key_sums (S, width) of a strip's keys; codes,
    factors and sums of queries, packed keys and their scales, values: as `vision_attention.attend` takes them.
    """

    x: np.ndarray
    keys: np.ndarray
    key_sums: np.ndarray
    codes: np.ndarray
    factors: np.ndarray
    sums: np.ndarray
    packed: np.ndarray
    scales: np.ndarray
    values: np.ndarray


@inline
def columns_of(size):
    """Columns of a buffer: a multiple of 128."""
    return (size + 127) // 128 * 128


@njit(nogil=True)
def allocate(scores, values, shape, strips):
    """Memory for so many strips."""
    w, h, d = shape.width, shape.heads, shape.head
    steps, line = 16 * width(values), (d + 63) // 64 * 256
    return Memory(
        x=np.zeros((strips, STRIP, columns_of(w)), np.float32),
        keys=np.zeros((strips, STRIP, w), np.float32),
        key_sums=np.zeros((strips, w), np.float32),
        codes=np.zeros((strips, STRIP, (w * width(scores) + 63) // 64 * 64), np.int8),
        factors=np.zeros((strips, STRIP, h), np.float32),
        sums=np.zeros((strips, STRIP, h), np.int32),
        packed=np.zeros((strips, h, STRIP * d * width(scores)), np.int8),
        scales=np.zeros((strips, h, STRIP), np.float32),
        values=np.zeros((strips, h, steps * line), np.int8),
    )


@apart
def embed_strips(isa, number, shape, tower, strips, patches, positions, x):
    """Patches (N, columns) through the embedding, its norm if there is one, plus positions (N or 0, width)."""
    columns, size = columns_of(patches.shape[1]), patches.shape[1]
    rows, small = np.zeros((STRIP, columns), np.float32), operand(number, STRIP, columns)
    for i in range(len(strips)):
        first, count = strips[i, 0], strips[i, 1]
        copy_rows(patches[first:], rows, count, size)
        encode(number, rows, count, columns, small)
        product(isa, number, tower.embed, small, count, x[i], False)
        if len(tower.embed_norm):
            norm(shape.norm, x[i], tower.embed_norm[0], x[i], shape.width, shape.eps, count)
        if len(positions):
            for r in range(count):
                for j in range(shape.width):
                    x[i, r, j] += positions[first + r, j]


@apart
def first_half(isa, number, scores, values, shape, norms, qkv, strips, start, cos, sin, m):
    """From the residual stream to queries, values and keys of some strips, the first of them number `start`.

    Keys stay float32; their sums over a strip are noted.
    """
    heads, size, w = shape.heads, shape.head, shape.width
    factor = np.float32(1.4426950408889634 / np.sqrt(size))  # scores in powers of two
    columns = columns_of(w)
    normed, small = np.zeros((STRIP, columns), np.float32), operand(number, STRIP, columns)
    made = np.zeros((STRIP, columns_of(16 * qkv[1])), np.float32)
    for i in range(start, start + len(strips)):
        first, count = strips[i - start, 0], strips[i - start, 1]
        norm(shape.norm, m.x[i], norms[0], normed, w, shape.eps, count)
        encode(number, normed, count, columns, small)
        product(isa, number, qkv, small, count, made, False)
        made[count:] = np.float32(0)
        m.key_sums[i] = np.float32(0)
        for r in range(count):
            if shape.half:
                rotate(made[r], 0, 2 * heads, size, shape.half, cos[first + r], sin[first + r])
            each, sums = address(m.factors[i, r]), address(m.sums[i, r])
            encode_row(scores, address(made[r]), heads, size, address(m.codes[i, r]), each, sums)
            for h in range(heads):
                m.factors[i, r, h] *= factor
            for j in range(w):
                m.keys[i, r, j] = made[r, w + j]
                m.key_sums[i, j] += made[r, w + j]
        place_values(values, address(made[0]) + 8 * w, 4 * made.shape[1], heads, size, address(m.values[i]))


@apart
def pack_keys(scores, shape, strips, start, stop, m):
    """Keys of strips `start` to `stop` in the order `attend` reads them; bytes without the mean of their image."""
    mean = np.zeros(shape.width, np.float32)
    for i in range(start, stop):
        if width(scores) == 1:
            mean[:] = np.float32(0)
            patches = 0
            for other in range(strips[i, 2], strips[i, 3]):
                for j in range(shape.width):
                    mean[j] += m.key_sums[other, j]
                patches += strips[other, 1]
            for j in range(shape.width):
                mean[j] /= np.float32(patches)
        rows, to, scales = address(m.keys[i]), address(m.packed[i]), address(m.scales[i])
        count, heads, size = strips[i, 1], shape.heads, shape.head
        place_keys(scores, rows, 4 * shape.width, count, address(mean), heads, size, to, scales)


@apart
def second_half(isa, number, scores, values, shape, norms, matrices, strips, start, stop, counts, m):
    """Attention, its output, and the MLP, added to the residual stream of strips `start` to `stop`."""
    columns, wide = columns_of(shape.width), columns_of(16 * matrices[2, 1])
    rows, small = np.zeros((STRIP, columns), np.float32), operand(number, STRIP, columns)
    inner, large = np.zeros((STRIP, wide), np.float32), operand(number, STRIP, wide)
    gates = np.zeros((STRIP, wide if shape.activation == SWIGLU else 0), np.float32)
    queries, keys, sizes = (m.codes, m.factors, m.sums), (m.packed, m.scales), (shape.heads, shape.head)
    for i in range(start, stop):
        count, x = strips[i, 1], m.x[i]
        attend(isa, scores, values, sizes, queries, keys, m.values, counts, i, strips[i, 2], strips[i, 3], rows)
        encode(number, rows, count, columns, small)
        product(isa, number, matrices[1], small, count, x, True)
        norm(shape.norm, x, norms[1], rows, shape.width, shape.eps, count)
        encode(number, rows, count, columns, small)
        up, gate, down = matrices[2], matrices[3], matrices[4]
        feed(isa, number, shape.activation, up, gate, down, small, count, inner, gates, large, x, True)


@njit(parallel=True, nogil=True)
def shared(
    part, isa, number, scores, values, shape, tower, layer, strips, patches, positions, cos, sin, counts, m, threads
):
    """One part of the encoder, each thread a run of strips: embedding, first half of a block, keys, second half."""
    for n in prange(threads):
        first, last = n * len(strips) // threads, (n + 1) * len(strips) // threads
        some, norms, matrices = strips[first:last], tower.norms[layer], tower.matrices[layer]
        if part == 0:
            embed_strips(isa, number, shape, tower, some, patches, positions, m.x[first:last])
        elif part == 1:
            first_half(isa, number, scores, values, shape, norms, matrices[0], some, first, cos, sin, m)
        elif part == 2:
            pack_keys(scores, shape, strips, first, last, m)
        else:
            second_half(isa, number, scores, values, shape, norms, matrices, strips, first, last, counts, m)


@kept
def forward(isa, number, scores, values, shape, tower, strips, patches, positions, cos, sin, out, threads):
    """Patches (N, 3 * p * p) -> features (N, width), float32.

    strips: (S, 4) first patch, patches (64 at most), and the first and last strip of their image. positions: (N or 0,
    width) are added to the embedding; cos, sin: (N, head / 2) rotary positions, if `shape.half`.
    """
    m, counts, parts = allocate(scores, values, shape, len(strips)), strips[:, 1].copy(), 3 * shape.layers + 1
    for n in range(parts):
        part, layer = (1 + (n - 1) % 3, (n - 1) // 3) if n else (0, 0)
        shared(
            part, isa, number, scores, values, shape, tower, layer, strips, patches, positions, cos, sin, counts, m,
            threads,
        )  # fmt: skip
    for i in range(len(strips)):
        first, count = strips[i, 0], strips[i, 1]
        norm(shape.norm, m.x[i], tower.last, m.x[i], shape.width, shape.eps, count)
        copy_rows(m.x[i], out[first:], count, shape.width)


# ---------------------------------------------------------------- the projector


@apart
def project_rows(isa, number, activation, matrices, x, out):
    """`project` of some rows."""
    none = np.zeros(4, np.int64)
    columns, wide = columns_of(x.shape[1]), columns_of(16 * matrices[0, 1])
    rows, small = np.zeros((STRIP, columns), np.float32), operand(number, STRIP, columns)
    inner, large = np.zeros((STRIP, wide), np.float32), operand(number, STRIP, wide)
    made = np.zeros((STRIP, 16 * matrices[1, 1]), np.float32)
    for first in range(0, len(x), STRIP):
        count = min(STRIP, len(x) - first)
        copy_rows(x[first:], rows, count, x.shape[1])
        encode(number, rows, count, columns, small)
        feed(isa, number, activation, matrices[0], none, matrices[1], small, count, inner, inner, large, made, False)
        copy_rows(made, out[first:], count, made.shape[1])


@njit(parallel=True, nogil=True)
def _project(isa, number, activation, matrices, x, out, threads):
    for n in prange(threads):
        first, last = n * len(x) // threads, (n + 1) * len(x) // threads
        project_rows(isa, number, activation, matrices, x[first:last], out[first:last])


@kept
def project(isa, number, activation, matrices, x, out, threads):
    """Two linear layers (2, 4) and what is between them: x (rows, columns) -> out (rows, padded columns), float32."""
    _project(isa, number, activation, matrices, x, out, threads)
