"""Attention of many new rows of a session at once: they share what a stored row costs to load and convert.

Every row gets the bits of `attention.look`: a score adds the same sixteen lanes in the same order, weights are those of
its own softmax, and weighted values are added key by key, in ascending order. As in FlashAttention (Dao et al., arXiv
2205.14135) keys and values pass by in blocks that stay in the first-level cache; unlike there all scores of a row are
kept, since a running maximum would change the order of additions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange
from numba.core import types
from numba.extending import intrinsic, overload

from .activations import address, bare, inline
from .apart import apart
from .attention import load_kv, look, place, query, row_bytes, row_scale, score, softmax
from .crew import LINE, claim, finish, first_stage, meet, no_stages
from .simd import (
    FOUR,
    FV,
    LANES,
    ONE,
    Tag,
    Vectors,
    bits_f,
    call,
    fma,
    join,
    load_f,
    load_f32,
    mul_f,
    pointer,
    shuffle,
    splat_f,
    split,
    spread_quad,
    store_f,
    store_f32,
    store_totals,
    zeros_f,
)
from .tile import SINGLE, TILE, load_tile, step, store_tile

QUERIES = 128
"""Queries of a KV head that look together: its share of as many new rows as they belong to."""

KEYS = 64
"""Stored rows converted at a time: 32 KB for heads of 128."""

TAKEN = 16
"""New rows whose keys and values a thread places before it asks for more."""

ANY_ISA = Tag("isa", "portable")
"""Steps of float32 are the same in every kernel set."""


@intrinsic
def _pairs(typingctx, total, queries, keys):
    """total + each of four vectors times each of four others, query by query."""

    def codegen(context, builder, sig, args):
        parts, left, right = (split(builder, a, n) for a, n in zip(args, (16, 4, 4), strict=True))
        products = [(key, query, parts[4 * r + c]) for r, query in enumerate(left) for c, key in enumerate(right)]
        return join(builder, [call(builder, "llvm.fma.v16f32", FV, *each) for each in products])

    return total(total, queries, keys), codegen


@intrinsic
def _store_quarters(typingctx, at, stride, value):
    """Four lanes go to `at`, the next four to `at + stride`, and so on."""

    def codegen(context, builder, sig, args):
        for r in range(4):
            part = shuffle(builder, args[2], list(range(4 * r, 4 * r + 4)))
            to = builder.add(args[0], builder.mul(args[1], ir.IntType(64)(r)))
            builder.store(part, pointer(builder, to, part.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, Vectors("f32")), codegen


# ---------------------------------------------------------------- what rows see, and room to work in


@bare
def sights(store, count):
    """(count, 2) of new rows: uncommitted rows that each sees before the first that it does not, and all that it sees.

    A row of a chain sees as many of both; only in a tree there are gaps.
    """
    seen = np.zeros((count, 2), np.int64)
    for t in range(count):
        marks = store.visible[t]
        while seen[t, 0] < marks.size and marks[seen[t, 0]]:
            seen[t, 0] += 1
        for mark in marks:
            seen[t, 1] += mark != 0
    return seen


@bare
def longest(store):
    """Rows of the head that holds most."""
    most = np.int64(0)
    for s in range(store.counts.shape[0]):
        for layer in range(store.counts.shape[1]):
            for count in store.counts[s, layer]:
                most = max(most, count)
    return most


@bare
def row_groups(store, count, heads):
    """(groups, 2) first new row and number of rows that look together: of one session, at most `QUERIES` queries."""
    groups, found, t = np.empty((count, 2), np.int64), 0, 0
    most = max(1, QUERIES * heads[1] // heads[0])
    while t < count:
        last = t + 1
        while last < count and last - t < most and store.owners[last] == store.owners[t]:
            last += 1
        groups[found, 0], groups[found, 1] = t, last - t
        found, t = found + 1, last
    return groups[:found]


@inline
def _shapes(heads, keys):
    """Queries of a KV head together, numbers of a converted row, and scores of a query.

    Scores of neighbours are an odd number of cache lines apart, or they would compete for the same places of the cache.
    """
    q_heads, kv_heads, size = heads
    return max(QUERIES, (q_heads // kv_heads + 3) // 4 * 4), (size + 63) // 64 * 64, (((keys + 31) // 16) | 1) * 16


@bare
def desks(heads, keys, threads):
    """(threads, numbers) float32, aligned to cache lines: what each thread needs to look at up to `keys` rows."""
    queries, wide, line = _shapes(heads, keys)
    each = queries * (heads[2] + line + wide + 16) + KEYS * (wide + heads[2] + 1) + 16
    memory = np.empty(threads * each + 16, np.float32)
    skipped = -address(memory) % 64 // 4
    return memory[skipped : skipped + threads * each].reshape(threads, each)


@inline
def _cut(desk, heads, keys):
    """A thread's memory -> queries, a block of keys or values, their scales, 16 products, scores, inverses, sums."""
    queries, wide, line = _shapes(heads, keys)
    size, block, at = heads[2], KEYS * wide, 0
    q = desk[: queries * size].reshape(queries, size)
    at = queries * size
    stored = desk[at : at + block]
    at += block
    scales = desk[at : at + KEYS]
    at += KEYS
    products = desk[at : at + 16]
    at += 16
    scores = desk[at : at + queries * line].reshape(queries, line)
    at += queries * line
    added = desk[at : at + queries * wide].reshape(queries, wide)
    at += queries * wide
    return q, stored, scales, products, scores, added, desk[at : at + queries]


# ---------------------------------------------------------------- keys


@inline
def _convert(kv, rows, scales, first, count, size, out, wide, factors):
    """Stored rows from `first` on as float32, `wide` numbers apart, and their scales."""
    stride = row_bytes(kv, size)
    for m in range(count):
        at, to = rows + (first + m) * stride, out + 4 * m * wide
        for j in range(0, size, 16):
            store_f(to + 4 * j, 0, load_kv(kv, ONE, at, j))
        store_f32(factors + 4 * m, row_scale(kv, scales, first + m))


@inline
def _score_block(size, queries, keys, factors, factor, products, scores, line, count):
    """Scores of four queries with `count` keys of a block, and of some behind them that nobody will read."""
    for m in range(0, count, 4):
        total = zeros_f(TILE)
        for j in range(0, size, 16):
            left, right = load_f(FOUR, queries + 4 * j, 4 * size), load_f(FOUR, keys + 4 * (m * size + j), 4 * size)
            total = _pairs(total, left, right)
        store_totals(products, total)
        value = mul_f(load_f(ONE, products, 0), bits_f(spread_quad(ONE, factors + 4 * m, 0)))
        _store_quarters(scores + 4 * m, line, mul_f(value, splat_f(factor)))


@inline
def _most(seen):
    """Of some rows, the most uncommitted ones seen before a gap."""
    most = np.int64(0)
    for r in range(seen.shape[0]):
        most = max(most, seen[r, 0])
    return most


@inline
def _score_all(kv, keys, scales, start, committed, seen, per_head, size, factor, buffers):
    """Scores of all queries with the rows that they see up to a gap."""
    q, stored, factors, products, scores, _, _ = buffers
    queries, line, reach = seen.shape[0] * per_head, 4 * scores.shape[1], committed + _most(seen)
    for first in range(0, reach, KEYS):
        there = min(reach - first, KEYS)
        _convert(kv, keys, scales, start + first, there, size, address(stored), size, address(factors))
        for i in range(0, queries, 4):
            most = _most(seen[i // per_head : min(i + 3, queries - 1) // per_head + 1])
            count = min(committed + most - first, there)
            to = address(scores[i]) + 4 * first
            _score_block(
                size, address(q[i]), address(stored), address(factors), factor, address(products), to, line, count
            )


# ---------------------------------------------------------------- weights and values


def scale_weights(kv: Any, weights: int, scales: int, count: int) -> None:
    """Weights of `count` values times the scales of these; nothing but for int8."""
    raise NotImplementedError("compiled code only")


@overload(scale_weights, jit_options={"forceinline": True})
def _scale_weights(kv, weights, scales, count):
    if kv.value != "int8":
        return lambda kv, weights, scales, count: None

    def scale(kv, weights, scales, count):
        whole = count // LANES * LANES
        for m in range(0, whole, LANES):
            at = weights + 4 * m
            store_f(at, 0, mul_f(load_f(ONE, at, 0), load_f(ONE, scales + 4 * m, 0)))
        for m in range(whole, count):
            store_f32(weights + 4 * m, load_f32(weights + 4 * m) * load_f32(scales + 4 * m))

    return scale


@inline
def _weigh_block(weights, line, values, wide, added, count):
    """To what four queries have added up: `count` values of a block."""
    for j in range(0, wide, 64):
        to = added + 4 * j
        total = load_tile(FOUR, FOUR, to, 4 * wide)
        for m in range(count):
            total = step(ANY_ISA, SINGLE, FOUR, FOUR, total, weights + 4 * m, line, values + 4 * (m * wide + j), 64)
        store_tile(FOUR, FOUR, to, 4 * wide, total)


@inline
def _weigh_row(weight, value, wide, added):
    """To what a query has added up: a value at an address."""
    for j in range(0, wide, 16):
        at = added + 4 * j
        store_f(at, 0, fma(load_f(ONE, value + 4 * j, 0), splat_f(weight), load_f(ONE, at, 0)))


@inline
def _weigh_all(kv, values, scales, start, committed, seen, per_head, size, buffers):
    """Values of the rows that queries see up to a gap, weighted and added up."""
    _, stored, factors, _, scores, added, _ = buffers
    queries, line, wide = seen.shape[0] * per_head, 4 * scores.shape[1], added.shape[1]
    reach = committed + _most(seen)
    for first in range(0, reach, KEYS):
        there = min(reach - first, KEYS)
        _convert(kv, values, scales, start + first, there, size, address(stored), wide, address(factors))
        for i in range(0, queries, 4):
            least = seen[i // per_head, 0]
            for r in range(i // per_head, min(i + 3, queries - 1) // per_head + 1):
                least = min(least, seen[r, 0])
            shared = max(np.int64(0), min(committed + least - first, there))
            _weigh_block(address(scores[i]) + 4 * first, line, address(stored), wide, address(added[i]), shared)
            for n in range(i, min(i + 4, queries)):
                for m in range(shared, min(committed + seen[n // per_head, 0] - first, there)):
                    at = address(stored) + 4 * m * wide
                    _weigh_row(scores[n, first + m], at, wide, address(added[n]))


# ---------------------------------------------------------------- rows behind a gap, and all together


@inline
def _score_behind(kv, keys, scales, row, marks, seen, q, size, factor, scores):
    """Scores of a query with what it sees behind a gap among the uncommitted rows, which start at `row`."""
    n = seen[0]
    for p in range(seen[0], marks.size if seen[1] > seen[0] else 0):
        if marks[p]:
            score(kv, keys, scales, row + p, q, size, factor, scores + 4 * n)
            n += 1


@inline
def _weigh_behind(kv, values, scales, row, marks, seen, size, weights, stored, factors, added):
    """To what a query has added up: what it sees behind a gap."""
    n = seen[0]
    for p in range(seen[0], marks.size if seen[1] > seen[0] else 0):
        if marks[p]:
            _convert(kv, values, scales, row + p, 1, size, stored, size, factors)
            _weigh_row(load_f32(weights + 4 * n) * load_f32(factors), stored, size, added)
            n += 1


@apart
def look_together(kv, layer, store, group, sight, head, qkv, heads, keys, desk, out):
    """`attention.look` of a group of rows, of one KV head."""
    q_heads, kv_heads, size = heads
    t, rows, per_head = group[0], group[1], q_heads // kv_heads
    s = store.owners[t]
    places, start = store.addresses[s], store.starts[s, layer, head]
    committed, seen = store.counts[s, layer, head] - store.pending[s], sight[t : t + rows]
    row, factor, queries = start + committed, np.float32(1) / np.sqrt(np.float32(size)), rows * per_head
    buffers = _cut(desk, heads, keys)
    q, stored, factors, _, scores, added, inverses = buffers
    added[:] = np.float32(0)
    for i in range((queries + 3) // 4 * 4):  # a query in place of each that four would need
        n = min(i, queries - 1)
        at = address(qkv[t + n // per_head]) + 4 * (head * per_head + n % per_head) * size
        for j in range(0, size, 16):
            store_f(address(q[i]) + 4 * j, 0, load_f(ONE, at + 4 * j, 0))
    _score_all(kv, places[0], places[2], start, committed, seen, per_head, size, factor, buffers)
    for i in range(queries):
        mine, marks, here = seen[i // per_head], store.visible[t + i // per_head], address(scores[i])
        _score_behind(kv, places[0], places[2], row, marks, mine, address(q[i]), size, factor, here + 4 * committed)
        inverses[i] = np.float32(1) / softmax(scores[i], committed + mine[1])
        scale_weights(kv, here, places[3] + 4 * start, committed + mine[0])
    _weigh_all(kv, places[1], places[3], start, committed, seen, per_head, size, buffers)
    for i in range(queries):
        mine, marks, sums = seen[i // per_head], store.visible[t + i // per_head], address(added[i])
        weights = address(scores[i]) + 4 * committed
        _weigh_behind(
            kv, places[1], places[3], row, marks, mine, size, weights, address(stored), address(factors), sums
        )
        to = address(out[t + i // per_head]) + 4 * (head * per_head + i % per_head) * size
        for j in range(0, size, 16):
            store_f(to + 4 * j, 0, mul_f(load_f(ONE, sums + 4 * j, 0), splat_f(inverses[i])))


@apart
def _attend(
    counters, kv, layer, store, qkv, count, groups, sight, heads, keys, own, cos, sin, eps, queries, desk, out
):  # fmt: skip
    """What a thread does in `attend_rows`: two stages."""
    stage = first_stage(counters)
    kv_heads, items = heads[1], (count + TAKEN - 1) // TAKEN
    item = claim(stage)
    while item < items:
        for t in range(TAKEN * item, min(TAKEN * (item + 1), count)):
            for h in range(kv_heads):
                place(kv, layer, store, t, h, qkv[t], heads, own, cos[t], sin[t], eps, query(queries, layer, t))
        finish(stage)
        item = claim(stage)
    meet(stage, items)
    item = claim(stage + LINE)
    while item < len(groups) * kv_heads:
        group, head = groups[len(groups) - 1 - item // kv_heads], item % kv_heads
        if group[1] > 1:
            look_together(kv, layer, store, group, sight, head, qkv, heads, keys, desk, out)
        else:
            t, scores = group[0], desk[: keys // 16 * 32 + 64].reshape(2, -1)
            look(kv, layer, store, t, head, qkv[t], heads, scores, out[t])
        item = claim(stage + LINE)


@njit(parallel=True, nogil=True)
def attend_rows(
    kv, layer, store, qkv, count, groups, sight, heads, keys, own, cos, sin, eps, queries, desk, out, threads
):  # fmt: skip
    """`attention.place`, then `attention.look`, for `count` new rows of every KV head; long rows, the last, first."""
    counters = no_stages(2)
    for n in prange(threads):
        _attend(
            counters, kv, layer, store, qkv, count, groups, sight, heads, keys, own, cos, sin, eps, queries, desk[n],
            out,
        )  # fmt: skip
