"""A pass of a few rows, as when decoding: `step.forward` to the bit, in one parallel region.

Starting a region costs some microseconds, and a pass would need two hundred. A single row is so short that every thread
normalises and rounds it for itself; several rows are items of a stage of their own.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .activations import address, bare, copy_rows, from_row, inline, norm_row, silu, space
from .apart import apart
from .attention import look, place, query
from .crew import LINE, claim, finish, first_stage, meet, no_stages, piece, pieces
from .gemm import gate_blocks, multiply_blocks
from .lora import expand_some, ranks_of, shrink_some
from .machine import kept
from .simd import ONE, load_f, mul_f, store_f
from .step import ready_row

FEW = 17
"""Rows below which this is faster."""

SET, ADD, GATE = 0, 1, 2
"""What becomes of outputs: stored, added to what is there, or gates of what follows them."""


@bare
def _multiply(isa, fmt, runs, size, x, count, y, stride, add, first, last):
    """`multiply_blocks` for the row blocks `first` to `last` of matrices that stand one above another."""
    start = 0
    for r in range(len(runs)):
        stop = start + runs[r, 1]
        multiply_blocks(
            isa, fmt, runs[r, 0] - start * size, size, x, count, y, stride, add, max(first, start), min(last, stop)
        )
        start = stop


@bare
def _adapted(isa, mode, fmt, runs, size, x, y, kind, lora, layer, owner, roles, low, ups, first, last):
    """The row blocks `first` to `last` of products of one row, and what its adapter adds; ups: an address for ups."""
    most = lora.most
    if kind == GATE:
        add = kind != GATE  # no literal: it would be compiled once more
        multiply_blocks(isa, fmt, runs[0, 0], size, x, 1, y, 0, add, first, last)
        multiply_blocks(isa, fmt, runs[1, 0], size, x, 1, ups, 0, add, first, last)
        expand_some(mode, lora, layer, owner, roles[0], low, y, first, last)
        expand_some(mode, lora, layer, owner, roles[0] + 1, low + 4 * most, ups, first, last)
        for at in range(64 * first, 64 * last, 64):
            store_f(y + at, 0, mul_f(silu(load_f(ONE, y + at, 0)), load_f(ONE, ups + at, 0)))
        return
    _multiply(isa, fmt, runs, size, x, 1, y, 0, kind == ADD, first, last)
    start = 0
    for r in range(len(runs)):
        stop, here = start + runs[r, 1], low + 4 * most * r
        low_block, high_block = max(first, start) - start, min(last, stop) - start
        expand_some(mode, lora, layer, owner, roles[0] + r, here, y + 64 * start, low_block, high_block)
        start = stop


@inline
def _project(
    n, stage, isa, mode, fmt, runs, size, x, source, weight, eps, scratch, y, kind, threads, lora, layer, owner, roles,
    low, ups,
):  # fmt: skip
    """Rows `source` -> activations x -> products in y; two stages. `weight` is empty, or of a norm that comes first.

    owner: adapter of the one row, or -1; it adds to the roles `roles`, whose A x is computed in the first stage.
    """
    count, made = len(source), False
    adapted = owner >= 0 and ranks_of(lora, layer, owner, roles[0], roles[1]) > 0
    if adapted:
        total, shares = ranks_of(lora, layer, owner, roles[0], roles[1]), pieces(threads)
        item = claim(stage)
        while item < shares:
            if not made:
                ready_row(mode, fmt, address(source), weight, eps, address(scratch), x, n)
                made = True
            shrink_some(
                mode, lora, layer, owner, roles[0], roles[1], address(scratch if weight.size else source[0]),
                address(low), item * total // shares, (item + 1) * total // shares,
            )  # fmt: skip
            finish(stage)
            item = claim(stage)
        meet(stage, shares)
    if count > 1:
        item = claim(stage)
        while item < count:
            ready_row(mode, fmt, address(source[item]), weight, eps, address(scratch), x, item)
            finish(stage)
            item = claim(stage)
        meet(stage, count)
    own = from_row(x, n if count == 1 else 0)
    stage, parts, blocks = stage + LINE, pieces(threads), runs[0, 1] if kind == GATE else runs[:, 1].sum()
    item = claim(stage)
    if item < parts and count == 1 and not made:
        ready_row(mode, fmt, address(source), weight, eps, address(scratch), x, n)
    while item < parts:
        # even numbers, since several rows take two blocks at a time
        half, end = piece(item, (blocks + 1) // 2, threads)
        first, last = 2 * half, min(2 * end, blocks)
        if adapted:
            _adapted(
                isa, mode, fmt, runs, size, own, address(y), kind, lora, layer, owner, roles, address(low),
                address(ups), first, last,
            )  # fmt: skip
        elif kind == GATE:
            gate_blocks(isa, fmt, runs[0, 0], runs[1, 0], size, own, count, address(y), 4 * y.shape[1], first, last)
        else:
            _multiply(isa, fmt, runs, size, own, count, address(y), 4 * y.shape[1], kind == ADD, first, last)
        finish(stage)
        item = claim(stage)
    meet(stage, parts)


@bare
def _show(layer, x, t, taps, seen):
    """Row t of what enters a layer, for those who want it: x (rows, width) -> seen (taps, T, width)."""
    for n in range(len(taps)):
        if taps[n] == layer:
            copy_rows(x[t:], seen[n, t:], 1, seen.shape[2])


@bare
def _attend(stage, kv, layer, store, qkv, count, heads, own, cos, sin, eps, queries, out, room, x, taps, seen):
    """`place`, then `look`, for every row and KV head: one stage for a single row, two for several.

    Nobody changes x meanwhile, so this is when what entered the layer is shown.
    """
    kv_heads = heads[1]
    items = count * kv_heads
    scores = np.empty((2, room), np.float32)
    item = claim(stage)
    while item < items:
        t, h = item // kv_heads, item % kv_heads
        if h == 0:
            _show(layer, x, t, taps, seen)
        place(kv, layer, store, t, h, qkv[t], heads, own, cos[t], sin[t], eps, query(queries, layer, t))
        if count == 1:
            look(kv, layer, store, t, h, qkv[t], heads, scores, out[t])
        finish(stage)
        item = claim(stage)
    meet(stage, items)
    if count > 1:
        item = claim(stage + LINE)
        while item < items:
            t, h = item // kv_heads, item % kv_heads
            look(kv, layer, store, t, h, qkv[t], heads, scores, out[t])
            finish(stage + LINE)
            item = claim(stage + LINE)
        meet(stage + LINE, items)


@apart
def _work(
    n, counters, isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries, first, taps, seen,
    logits, wide, qkv, mixed, gated, ups, low, scratch, a, b, c, d, e, room, threads,
):  # fmt: skip
    """What thread n does in a pass; see `forward_few`."""
    stage = first_stage(counters)
    heads = (sizes.q_heads, sizes.kv_heads, sizes.head)
    own, eps, none = scratch[n], weights.eps, weights.last[:0]
    rows, two, aside = x[:count], 2 * LINE, wide.size > 0
    entering = wide[:count] if aside else rows
    owner = lora.rows[0] if len(lora.rows) else np.int64(-1)
    for layer in range(sizes.layers):
        runs, norms = weights.products[layer], weights.norms[layer]
        at = stage + 5 * two * layer
        before = none if aside else norms[0]
        _project(
            n, at, isa, mode, formats[0], runs[:3], weights.sizes[0], a, entering, before, eps, own, qkv, SET, threads,
            lora, layer, owner, (0, 3), low, ups,
        )  # fmt: skip
        _attend(
            at + two, kv, layer, store, qkv, count, heads, (weights.head_norms[layer], weights.biases[layer]), cos, sin,
            eps, queries, mixed, room, x, taps, seen,
        )  # fmt: skip
        _project(
            n, at + 2 * two, isa, mode, formats[1], runs[3:4], weights.sizes[3], b, mixed[:count], none, eps, own, x,
            ADD, threads, lora, layer, owner, (3, 4), low, ups,
        )  # fmt: skip
        _project(
            n, at + 3 * two, isa, mode, formats[2], runs[4:6], weights.sizes[4], c, rows, norms[1], eps, own, gated,
            GATE, threads, lora, layer, owner, (4, 6), low, ups,
        )  # fmt: skip
        _project(
            n, at + 4 * two, isa, mode, formats[3], runs[6:], weights.sizes[6], d, gated[:count], none, eps, own, x,
            ADD, threads, lora, layer, owner, (6, 7), low, ups,
        )  # fmt: skip
    at = stage + 5 * two * sizes.layers
    _project(
        n, at, isa, mode, formats[4], weights.head, weights.head_size, e, rows[first:], weights.last, eps, own, logits,
        SET, threads, lora, np.int64(0), np.int64(-1), (0, 0), low, ups,
    )  # fmt: skip


@njit(parallel=True, nogil=True)
def _together(
    counters, isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries, first, taps, seen,
    logits, wide, qkv, mixed, gated, ups, low, scratch, a, b, c, d, e, room, threads,
):  # fmt: skip
    for n in prange(threads):
        _work(
            np.int64(n), counters, isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries,
            first, taps, seen, logits, wide, qkv, mixed, gated, ups, low, scratch, a, b, c, d, e, room, threads,
        )  # fmt: skip


@kept
def forward_few(
    isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries, first, taps, seen, logits, wide,
    threads,
):  # fmt: skip
    """As `step.forward`, for fewer than `FEW` rows without adapters, or one row with or without.

    wide: (rows, padded columns) what q, k and v of a single layer read in place of the normed x; no numbers: that.
    """
    width, heads, inner = sizes.width, sizes.q_heads * sizes.head, sizes.inner
    rows, read = x.shape[0], count - first
    slots = threads if count == 1 else rows
    qkv = np.empty((rows, heads + 2 * sizes.kv_heads * sizes.head), np.float32)
    mixed = np.zeros((rows, (heads + 127) // 128 * 128), np.float32)
    gated = np.zeros((rows, (inner + 127) // 128 * 128), np.float32)
    scratch = np.zeros((threads, x.shape[1]), np.float32)
    ups, low = np.zeros((1, gated.shape[1]), np.float32), np.zeros((3, lora.most), np.float32)
    a, b = space(mode, formats[0], wide.shape[1] if wide.size else width, slots), space(mode, formats[1], heads, slots)
    c, d = space(mode, formats[2], width, slots), space(mode, formats[3], inner, slots)
    e = space(mode, formats[4], width, threads if read == 1 else (read + 3) // 4 * 4)
    counters = no_stages(10 * sizes.layers + 2)
    room = store.counts.max() + count + 16
    _together(
        counters, isa, formats, mode, kv, sizes, weights, lora, store, x, count, cos, sin, queries, first, taps, seen,
        logits, wide, qkv, mixed, gated, ups, low, scratch, a, b, c, d, e, room, threads,
    )  # fmt: skip
    for t in range(count):
        _show(sizes.layers, x, t, taps, seen)
        norm_row(address(x[t]), address(weights.last), address(x[t]), width, weights.eps)
