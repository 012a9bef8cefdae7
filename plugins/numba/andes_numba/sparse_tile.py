"""Tiles of products of 1:4 sparse weights: two row blocks times two or four activation rows, all in registers."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic

from .activations import address
from .isa import DOTS, shuffle_bytes
from .product import uncentred
from .simd import (
    TWO,
    Tag,
    _load_quad,
    add_b,
    and_i,
    fetch,
    join,
    load_i,
    repeat,
    shift_left,
    shift_right,
    splat_i,
    split,
    sub_b,
    zeros_f,
    zeros_i,
)
from .tile import addresses, scaled

ACROSS = 2
"""Row blocks of a tile; with four, sums leave the registers."""


def next_lines(layout: Any) -> Tag:
    """Lines of 64 bytes that a tile asks memory for with each group: what the next row blocks begin with.

    Reading two row blocks at a time, the processor does not guess what comes next.
    """
    return Tag("lines", -(-ACROSS * layout.group_bytes // 64))


@intrinsic
def pick_cross(typingctx, isa, rows, total, x, x_stride, where, weights):
    """total + sixteen columns: row r of x (16 unsigned bytes) at `x + r * x_stride`; positions and signed values."""
    height, width = rows.value, weights.rows

    def codegen(context, builder, sig, args):
        parts, columns = split(builder, args[2], total.rows), split(builder, args[6], width)
        picks = [builder.or_(part, repeat(0x0C080400)) for part in split(builder, args[5], width)]
        for r, at in enumerate(addresses(builder, args[3], args[4], height)):
            values = _load_quad(builder, at)
            for c, (pick, weight) in enumerate(zip(picks, columns, strict=True)):
                chosen, n = shuffle_bytes(builder, isa, values, pick), r * width + c
                parts[n] = DOTS[isa.value](builder, parts[n], chosen, weight, True)
        return join(builder, parts)

    return total(isa, rows, total, types.int64, types.int64, where, weights), codegen


@intrinsic
def add_columns(typingctx, rows, tile, columns):
    """A tile of i32, each row plus a vector for each column."""
    width = columns.rows

    def codegen(context, builder, sig, args):
        parts, more = split(builder, args[1], tile.rows), split(builder, args[2], width)
        return join(builder, [builder.add(part, more[n % width]) for n, part in enumerate(parts)])

    return tile(rows, tile, columns), codegen


def sparse_tile(layout: Any, vectors: Any) -> Any:
    """Code of `gemm.tile`."""
    length, group, bits, fields = layout.group_bytes, layout.group, layout.grid.bits, 8 // layout.grid.bits
    parts, size_of_part, mask = group // 64, 64 + 32 * bits, 0x01010101 * ((1 << bits) - 1)
    zero, doubled, lines = -layout.grid.low, layout.grid.step == 2, next_lines(layout)

    def integers(isa, fmt, rows, weights, size, x, row):
        _, groups, stride, all_codes, all_scales, _ = x
        values, scales = address(all_codes[row]), address(all_scales[row])
        total = zeros_f(vectors)
        for g in range(groups):
            at, here = weights + g * length, values + g * group
            if row == 0:
                fetch(weights + ACROSS * (size + g * length), lines)
            inner, sums = zeros_i(vectors), zeros_i(TWO)
            for n in range(parts):
                start = at + 32 + size_of_part * n
                index = load_i(TWO, start, size)
                for j in range(4):
                    where = and_i(shift_right(index, 2 * j), splat_i(0x03030303))
                    codes = load_i(TWO, start + 64 + 64 * (j // fields), size)
                    codes = and_i(shift_right(codes, bits * (j % fields)), splat_i(mask))
                    if doubled:
                        codes = shift_left(codes, 1)
                    sums = add_b(sums, codes)
                    signed = sub_b(codes, splat_i(0x01010101 * zero))
                    inner = pick_cross(isa, rows, inner, here + 64 * n + 16 * j, stride, where, signed)
            inner = add_columns(rows, inner, uncentred(isa, TWO, sums, zero * group // 4))
            total = scaled(rows, TWO, total, inner, scales + 4 * g, 4 * groups, at, size)
        return total

    return integers
