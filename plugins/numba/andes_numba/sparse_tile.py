"""Tiles of products of 1:4 sparse weights: four row blocks times four activation rows, all in registers.

`product.py` shifts and masks the stored bits for every four activation rows, and sums zero points along. Here both are
done once for all of them: a row block is spread to positions and signed values, a byte for each weight that is stored,
still a quarter of what dense weights need. Activations are made unsigned (128 is added to each), so that the values may
be signed; 128 times the sum of a group's values is taken off beforehand. Sums of a group are the same exact integers.
"""

from __future__ import annotations

from typing import Any

from andes_packing.formats import FORMATS
from numba.core import types
from numba.extending import intrinsic, overload

from .activations import address
from .isa import DOTS, dot4, shuffle_bytes
from .simd import (
    FOUR,
    I64,
    IV,
    NARROW,
    ONE,
    Vectors,
    _load,
    _load_quad,
    add_i,
    and_i,
    join,
    load_i,
    mul_i,
    repeat,
    shift_left,
    shift_right,
    splat_i,
    split,
    store_f,
    sub_i,
    zeros_f,
    zeros_i,
)
from .tile import addresses, scaled, xor_i

SIGNS = 0x80808080
"""The highest bit of every byte: turns signed bytes into unsigned ones that are 128 higher, and back."""


@intrinsic
def pick_step(typingctx, isa, rows, columns, total, x, x_stride, w):
    """total + sixteen columns: row r of x (16 bytes) at `x + r * x_stride`; positions and values of vectors at w."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        parts = split(builder, args[3], total.rows)
        picks = []
        for c in range(width):
            at = builder.add(args[6], I64(128 * c))
            where = builder.or_(_load(builder, at, IV), repeat(0x0C080400))
            picks.append((where, _load(builder, builder.add(at, I64(64)), IV)))
        for r, at in enumerate(addresses(builder, args[4], args[5], height)):
            values = builder.xor(_load_quad(builder, at), repeat(SIGNS))
            for c, (where, weights) in enumerate(picks):
                chosen, n = shuffle_bytes(builder, isa, values, where), r * width + c
                parts[n] = DOTS[isa.value](builder, parts[n], chosen, weights, True)
        return join(builder, parts)

    return total(isa, rows, columns, total, types.int64, types.int64, types.int64), codegen


@intrinsic
def load_columns(typingctx, rows, columns, at):
    """A tile of i32 whose rows are all the vectors at `at`."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        return join(builder, [_load(builder, builder.add(args[2], I64(64 * c)), IV) for c in range(width)] * height)

    return Vectors("i32", height * width)(rows, columns, types.int64), codegen


def spread_bytes(group: int) -> int:
    """Bytes of a spread group of a row block: a correction, then a position and a value for each weight stored."""
    return 64 + 8 * group


def spread_sparse(isa: Any, fmt: Any, codes: int, to: int, body: int, stride: int) -> None:
    """A group of a row block: what has to be added to its sums goes to `to`; positions and values of 16 columns at a
    time, `stride` bytes apart, to `body`."""
    raise NotImplementedError("compiled code only")


@overload(spread_sparse, jit_options={"forceinline": True})
def _spread_sparse(isa, fmt, codes, to, body, stride):
    layout = FORMATS[fmt.value]
    bits, fields, doubled = layout.grid.bits, 8 // layout.grid.bits, layout.grid.step == 2
    parts, size, mask = layout.group // 64, 64 + 32 * bits, 0x01010101 * ((1 << bits) - 1)
    low = 0x01010101 * -layout.grid.low

    def spread(isa, fmt, codes, to, body, stride):
        total = zeros_i(ONE)
        for n in range(parts):
            start = codes + size * n
            index = load_i(ONE, start, 0)
            for j in range(4):
                packed = load_i(ONE, start + 64 + 64 * (j // fields), 0)
                field = and_i(shift_right(packed, bits * (j % fields)), splat_i(mask))
                if doubled:
                    field = shift_left(field, 1)
                # the highest bit keeps bytes from borrowing of their neighbours
                field = xor_i(sub_i(add_i(field, splat_i(SIGNS)), splat_i(low)), splat_i(SIGNS))
                here = body + (4 * n + j) * stride
                store_f(here, 0, and_i(shift_right(index, 2 * j), splat_i(0x03030303)))
                store_f(here + 64, 0, field)
                total = dot4(isa, NARROW, total, splat_i(0x01010101), field)
        store_f(to, 0, mul_i(total, splat_i(-128)))

    return spread


def prepare_with(layout: Any, width: int) -> Any:
    """Code of `gemm.prepare` for `width` row blocks: their corrections, then sixteen columns of each in turn."""
    length, whole = layout.group_bytes, width * spread_bytes(layout.group)

    def prepare(isa, fmt, columns, weights, size, groups, buffer):
        start = (address(buffer) + 63) // 64 * 64
        for g in range(groups):
            for c in range(width):
                at, to = weights + c * size + g * length + 32, start + g * whole
                spread_sparse(isa, fmt, at, to + 64 * c, to + 64 * width + 128 * c, 128 * width)
        return start, 0, whole

    return prepare


def tile_with(layout: Any, vectors: Any, width: int) -> Any:
    """Code of `gemm.tile` for weights that `prepare_with` has spread."""
    length, group = layout.group_bytes, layout.group

    def integers(isa, fmt, columns, weights, size, codes, x, row):
        _, groups, stride, all_codes, all_scales, _ = x
        values, scales = address(all_codes[row]), address(all_scales[row])
        start, _, along = codes
        total = zeros_f(vectors)
        for g in range(groups):
            at = start + g * along
            inner = load_columns(FOUR, columns, at)
            for s in range(group // 16):
                here = at + 64 * width + s * 128 * width
                inner = pick_step(isa, FOUR, columns, inner, values + g * group + 16 * s, stride, here)
            total = scaled(FOUR, columns, total, inner, scales + 4 * g, 4 * groups, weights + g * length, size)
        return total

    return integers
