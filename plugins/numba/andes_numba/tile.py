"""Tiles of a matrix product that stay in registers: several activation rows times several vectors of sixteen outputs.

A tile is `Vectors` of rows x columns vectors, row by row. One `step` loads each operand once and adds every product
once, in the order of steps: what a lane holds does not depend on the size of its tile. A kind of numbers says what a
32-bit lane of the operands holds, and how much of the inner dimension a step covers: four bytes ("narrow", "wide":
unsigned weights below 128, or any, times signed values), two bfloat16 ("bf16"), or one float32 ("f32"; "f16" where the
weights alone are float16).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .isa import DOTS
from .simd import (
    F32,
    FV,
    I32,
    I64,
    IV,
    LANES,
    Tag,
    Vectors,
    _binary,
    _load,
    _load_half,
    _splat,
    call,
    join,
    pointer,
    repeat,
    shuffle,
    split,
)

WIDTH, TILE = 4, Tag("rows", 16)
"""Vectors of outputs side by side in the usual tile, and all of them: FOUR rows by FOUR vectors."""

FULL, SMALL = Tag("number", "wide"), Tag("number", "narrow")
BRAIN, SINGLE, HALF = Tag("number", "bf16"), Tag("number", "f32"), Tag("number", "f16")


xor_i = _binary(lambda b, x, y: b.xor(x, y))


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not know by name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BRAINS, _PAIRS = ir.VectorType(_BFloat(), LANES), ir.VectorType(_BFloat(), 2 * LANES)


def _dot_bf16(builder: Any, total: Any, weights: Any, values: Any) -> Any:
    pairs = (builder.bitcast(x, _PAIRS) for x in (weights, values))
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FV, total, *pairs)


def _dot_f32(builder: Any, total: Any, weights: Any, values: Any) -> Any:
    return call(builder, "llvm.fma.v16f32", FV, weights, values, total)


def addresses(builder: Any, start: Any, stride: Any, count: int) -> list[Any]:
    """`count` addresses, `stride` bytes apart."""
    return [builder.add(start, builder.mul(stride, I64(n))) if n else start for n in range(count)]


@intrinsic
def step(typingctx, isa, kind, rows, columns, total, x, x_stride, w, w_stride):
    """total + one step: row r of x (a 32-bit lane each) at `x + r * x_stride`, vector c at `w + c * w_stride`."""
    height, width = rows.value, columns.value
    sig = total(isa, kind, rows, columns, total, *[types.int64] * 4)
    floats = kind.value in ("f32", "f16")

    def codegen(context, builder, sig, args):
        parts = split(builder, args[4], total.rows)
        vector, lane = (FV, F32) if floats else (IV, I32)
        starts = addresses(builder, args[7], args[8], width)
        half = kind.value == "f16"
        weights = [_load_half(builder, at) if half else _load(builder, at, vector) for at in starts]
        for r, at in enumerate(addresses(builder, args[5], args[6], height)):
            value = _splat(builder, _load(builder, at, lane))
            for c, weight in enumerate(weights):
                n = r * width + c
                if floats:
                    parts[n] = _dot_f32(builder, parts[n], weight, value)
                elif kind.value == "bf16":
                    parts[n] = _dot_bf16(builder, parts[n], weight, value)
                else:
                    parts[n] = DOTS[isa.value](builder, parts[n], weight, value, kind.value == "narrow")
        return join(builder, parts)

    return sig, codegen


@intrinsic
def cross(typingctx, isa, kind, rows, total, x, x_stride, weights):
    """`step` of bytes with weights that are here already, a vector for each column."""
    height, width = rows.value, weights.rows

    def codegen(context, builder, sig, args):
        parts, columns = split(builder, args[3], total.rows), split(builder, args[6], width)
        for r, at in enumerate(addresses(builder, args[4], args[5], height)):
            value = _splat(builder, _load(builder, at, I32))
            for c, weight in enumerate(columns):
                n = r * width + c
                parts[n] = DOTS[isa.value](builder, parts[n], weight, value, kind.value == "narrow")
        return join(builder, parts)

    return total(isa, kind, rows, total, types.int64, types.int64, weights), codegen


@intrinsic
def spread_rows(typingctx, rows, columns, x, x_stride):
    """A tile whose row r is the int32 at `x + r * x_stride` in every lane."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        parts = []
        for at in addresses(builder, args[2], args[3], height):
            parts += [_splat(builder, _load(builder, at, I32))] * width
        return join(builder, parts)

    return Vectors("i32", height * width)(rows, columns, types.int64, types.int64), codegen


@intrinsic
def scaled(typingctx, rows, columns, total, inner, x, x_stride, w, w_stride):
    """total + inner * (16 float16 scales of each vector at w) * (float32 scale of each row at x)."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        parts, sums = split(builder, args[2], total.rows), split(builder, args[3], total.rows)
        scales = [_load_half(builder, at) for at in addresses(builder, args[6], args[7], width)]
        for r, at in enumerate(addresses(builder, args[4], args[5], height)):
            value = _splat(builder, _load(builder, at, F32))
            for c, scale in enumerate(scales):
                n = r * width + c
                both = builder.fmul(scale, value)
                parts[n] = call(builder, "llvm.fma.v16f32", FV, builder.sitofp(sums[n], FV), both, parts[n])
        return join(builder, parts)

    return total(rows, columns, total, inner, *[types.int64] * 4), codegen


@intrinsic
def load_tile(typingctx, rows, columns, at, stride):
    """Float32 rows at `at + r * stride`, their vectors side by side."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        parts = [
            _load(builder, builder.add(start, I64(64 * c)), FV)
            for start in addresses(builder, args[2], args[3], height)
            for c in range(width)
        ]
        return join(builder, parts)

    return Vectors("f32", height * width)(rows, columns, types.int64, types.int64), codegen


@intrinsic
def store_tile(typingctx, rows, columns, at, stride, value):
    """The inverse of `load_tile`."""
    height, width = rows.value, columns.value

    def codegen(context, builder, sig, args):
        parts = iter(split(builder, args[4], value.rows))
        for start in addresses(builder, args[2], args[3], height):
            for c in range(width):
                to = builder.add(start, I64(64 * c))
                builder.store(next(parts), pointer(builder, to, FV), align=1)
        return context.get_dummy_value()

    return types.void(rows, columns, types.int64, types.int64, value), codegen


# ---------------------------------------------------------------- bfloat16


@intrinsic
def store_brain(typingctx, at, value):
    """Sixteen float32 as bfloat16, rounded to nearest."""

    def codegen(context, builder, sig, args):
        builder.store(builder.fptrunc(args[1], _BRAINS), pointer(builder, args[0], _BRAINS), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, Vectors("f32")), codegen


@intrinsic
def store_brain_pairs(typingctx, at, first, second):
    """Lane by lane the bfloat16 of `first`, then that of `second`: 64 bytes."""

    def codegen(context, builder, sig, args):
        both = [builder.fptrunc(x, _BRAINS) for x in args[1:]]
        order = ir.VectorType(I32, 2 * LANES)([n // 2 + LANES * (n % 2) for n in range(2 * LANES)])
        mixed = builder.shuffle_vector(*both, order)
        builder.store(mixed, pointer(builder, args[0], _PAIRS), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, Vectors("f32"), Vectors("f32")), codegen


# ---------------------------------------------------------------- scores of four queries and 64 keys

_FAR = -1e30
"""A score that weighs nothing, and from which any other can be taken away."""


def _lanes(value: float) -> ir.Constant:
    return FV([value] * LANES)


def _largest(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def times_keys(typingctx, tile, scales):
    """An i32 tile as float32, vector c times the sixteen scales at `scales + 64 * c`."""

    def codegen(context, builder, sig, args):
        each = [_load(builder, builder.add(args[1], I64(64 * c)), FV) for c in range(WIDTH)]
        parts = split(builder, args[0], tile.rows)
        return join(builder, [builder.fmul(builder.sitofp(p, FV), each[n % WIDTH]) for n, p in enumerate(parts)])

    return Vectors("f32", tile.rows)(tile, types.int64), codegen


@intrinsic
def only_first(typingctx, tile, count):
    """A tile whose columns from `count` on are far below every other score."""

    def codegen(context, builder, sig, args):
        limit, parts = _splat(builder, builder.trunc(args[1], I32)), []
        for n, part in enumerate(split(builder, args[0], tile.rows)):
            column = IV([LANES * (n % WIDTH) + lane for lane in range(LANES)])
            parts.append(builder.select(builder.icmp_signed("<", column, limit), part, _lanes(_FAR)))
        return join(builder, parts)

    return tile(tile, types.int64), codegen


@intrinsic
def relative(typingctx, tile, factors, stride, bases):
    """Row r times the float32 at `factors + r * stride`, minus the one at `bases + 4 * r`."""

    def codegen(context, builder, sig, args):
        parts, height = split(builder, args[0], tile.rows), tile.rows // WIDTH
        scales, lows = addresses(builder, args[1], args[2], height), addresses(builder, args[3], I64(4), height)
        for r, (at, low) in enumerate(zip(scales, lows, strict=True)):
            factor = _splat(builder, _load(builder, at, F32))
            base = builder.fneg(_splat(builder, _load(builder, low, F32)))
            for n in range(r * WIDTH, (r + 1) * WIDTH):
                parts[n] = call(builder, "llvm.fma.v16f32", FV, parts[n], factor, base)
        return join(builder, parts)

    return tile(tile, types.int64, types.int64, types.int64), codegen


@intrinsic
def exceeds(typingctx, tile, limit):
    """Whether any lane is above a number."""

    def codegen(context, builder, sig, args):
        parts = split(builder, args[0], tile.rows)
        while len(parts) > 1:
            parts = [_largest(builder, x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
        above = builder.fcmp_ordered(">", parts[0], _splat(builder, args[1]))
        return builder.icmp_unsigned("!=", builder.bitcast(above, ir.IntType(LANES)), ir.IntType(LANES)(0))

    return types.boolean(tile, types.float32), codegen


@intrinsic
def row_maxima(typingctx, tile, out):
    """The largest number of row r goes to `out + 4 * r`."""

    def codegen(context, builder, sig, args):
        parts = split(builder, args[0], tile.rows)
        for r, at in enumerate(addresses(builder, args[1], I64(4), tile.rows // WIDTH)):
            vector, width = parts[r * WIDTH], LANES
            for other in parts[r * WIDTH + 1 : (r + 1) * WIDTH]:
                vector = _largest(builder, vector, other)
            while width > 1:
                width //= 2
                low = shuffle(builder, vector, list(range(width)))
                vector = _largest(builder, low, shuffle(builder, vector, list(range(width, 2 * width))))
            builder.store(builder.extract_element(vector, I32(0)), pointer(builder, at, F32), align=1)
        return context.get_dummy_value()

    return types.void(tile, types.int64), codegen


_POWERS = {
    "bf16": (0.99992807, 0.693261, 0.24261112, 0.0551716),
    "f32": (1.0, 0.6931472, 0.24022647, 0.055503287, 0.009618489, 0.0013399931, 0.00015345806),
}
"""Polynomials for 2**x within half of 1, by least squares: off by 7.5e-5, what bfloat16 does not see, and by 2e-9."""


def _power(builder: Any, x: Any, kind: str) -> Any:
    """2**x of a vector; below -126 the smallest normal number."""
    x = _largest(builder, x, _lanes(-126.0))
    whole = call(builder, "llvm.rint.v16f32", FV, x)
    part, (value, *others) = builder.fsub(x, whole), _POWERS[kind][::-1]
    value = _lanes(value)
    for factor in others:
        value = call(builder, "llvm.fma.v16f32", FV, value, part, _lanes(factor))
    exponent = builder.shl(builder.fptosi(whole, IV), repeat(23))
    return builder.bitcast(builder.add(builder.bitcast(value, IV), exponent), FV)


@intrinsic
def weigh_tile(typingctx, kind, tile, sums, out, stride):
    """2**tile goes to `out + r * stride`, in the numbers of `kind`; row r is added to the lanes at `sums + 64 * r`."""
    brain = kind.value == "bf16"

    def codegen(context, builder, sig, args):
        parts = iter(split(builder, args[1], tile.rows))
        totals = addresses(builder, args[2], I64(64), tile.rows // WIDTH)
        for total, start in zip(totals, addresses(builder, args[3], args[4], tile.rows // WIDTH), strict=True):
            there = _load(builder, total, FV)
            for c in range(WIDTH):
                value = _power(builder, next(parts), kind.value)
                there = builder.fadd(there, value)
                value = builder.fptrunc(value, _BRAINS) if brain else value
                to = builder.add(start, I64((32 if brain else 64) * c))
                builder.store(value, pointer(builder, to, value.type), align=1)
            builder.store(there, pointer(builder, total, FV), align=1)
        return context.get_dummy_value()

    return types.void(kind, tile, types.int64, types.int64, types.int64), codegen
