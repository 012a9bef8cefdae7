"""512-bit vectors for Numba: sixteen 32-bit lanes, one or several vectors at a time, written as ordinary functions.

A value of type `Vectors(lane, rows)` is `rows` LLVM vectors of sixteen i32 or f32; an operand with one row serves every
row of the other. All operations but two are generic LLVM, which a target lowers to what it has (AVX-512, AVX2, NEON);
the others (`isa.py`) ask the kernel set, a `Tag` whose value is part of its type: choosing costs nothing at run time.
Rows never mix, and nothing is re-associated: a result does not depend on how many rows are computed together.
Memory is addressed by plain integers (`array.ctypes.data`), any alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_constant
from numba.extending import (
    NativeValue,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)

LANES = 16
I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
IV, FV = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTES = ir.VectorType(I8, 64)


# ---------------------------------------------------------------- types


class Tag:
    """A compile-time choice handed to kernels: `kind` is what it chooses ("isa", "format" …), `value` the choice."""

    def __init__(self, kind: str, value: Any) -> None:
        self.kind, self.value = kind, value
        self.type = TagType(kind, value)  # made once: Numba asks with every call


class TagType(types.Type):
    """Numba's type of a `Tag`; the choice is part of the type."""

    def __init__(self, kind: str, value: Any) -> None:
        self.kind, self.value = kind, value
        super().__init__(name=f"{kind}={value}")


class Vectors(types.Type):
    """`rows` vectors of sixteen "i32" or "f32" lanes."""

    def __init__(self, lane: str, rows: int = 1) -> None:
        self.lane, self.rows = lane, rows
        super().__init__(name=f"{lane}x16x{rows}")


@register_model(TagType)
class _TagModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: TagType) -> None:
        super().__init__(manager, kind, I8)


@register_model(Vectors)
class _VectorsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vectors) -> None:
        vector = IV if kind.lane == "i32" else FV
        super().__init__(manager, kind, vector if kind.rows == 1 else ir.ArrayType(vector, kind.rows))


@typeof_impl.register(Tag)
def _typeof_tag(tag: Tag, _: Any) -> TagType:
    return tag.type


@unbox(TagType)
def _unbox_tag(*_: Any) -> NativeValue:
    return NativeValue(I8(0))


@lower_constant(TagType)
def _tag_constant(*_: Any) -> ir.Constant:
    return I8(0)


ONE, TWO, FOUR, EIGHT = (Tag("rows", n) for n in (1, 2, 4, 8))
NARROW, WIDE = Tag("weights", "below 128"), Tag("weights", "any byte")


# ---------------------------------------------------------------- how intrinsics are made

Emit = Callable[..., Any]


def split(builder: Any, value: Any, rows: int) -> list[Any]:
    """The LLVM vectors of a value of `rows` rows."""
    return [value] if rows == 1 else [builder.extract_value(value, r) for r in range(rows)]


def join(builder: Any, parts: list[Any]) -> Any:
    """LLVM vectors -> one value of as many rows."""
    if len(parts) == 1:
        return parts[0]
    whole = ir.ArrayType(parts[0].type, len(parts))(ir.Undefined)
    for r, part in enumerate(parts):
        whole = builder.insert_value(whole, part, r)
    return whole


def per_row(signature: Any, emit: Emit) -> Callable[..., Any]:
    """Code that calls `emit(builder, *operands)` once per row; scalars and single rows are given to every row."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        rows = signature.return_type.rows
        operands = []
        for kind, value in zip(sig.args, args, strict=True):
            parts = split(builder, value, kind.rows) if isinstance(kind, Vectors) else [value]
            operands.append(parts * rows if len(parts) == 1 else parts)
        return join(builder, [emit(builder, *row) for row in zip(*operands, strict=True)])

    return codegen


def _signature(lane: str | None, *args: Any) -> Any:
    vectors = [a for a in args if isinstance(a, Vectors)]
    return Vectors(lane or vectors[0].lane, max(v.rows for v in vectors))(*args)


def _unary(emit: Emit, lane: str | None = None) -> Any:
    def operation(typingctx, a):  # type: ignore[no-untyped-def]
        signature = _signature(lane, a)
        return signature, per_row(signature, emit)

    return intrinsic(operation)


def _binary(emit: Emit, lane: str | None = None) -> Any:
    def operation(typingctx, a, b):  # type: ignore[no-untyped-def]
        signature = _signature(lane, a, b)
        return signature, per_row(signature, emit)

    return intrinsic(operation)


def _ternary(emit: Emit, lane: str | None = None) -> Any:
    def operation(typingctx, a, b, c):  # type: ignore[no-untyped-def]
        signature = _signature(lane, a, b, c)
        return signature, per_row(signature, emit)

    return intrinsic(operation)


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic by name."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def _splat(builder: Any, value: Any, lanes: int = LANES) -> Any:
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(vector(ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, vector(ir.Undefined), ir.VectorType(I32, lanes)([0] * lanes))


def shuffle(builder: Any, vector: Any, index: list[int]) -> Any:
    """The lanes `index` of a vector."""
    return builder.shuffle_vector(vector, vector, ir.VectorType(I32, len(index))(index))


def repeat(value: int) -> ir.Constant:
    """A 32-bit constant in every lane."""
    return IV([value - (1 << 32) if value >= 1 << 31 else value] * LANES)


# ---------------------------------------------------------------- lane by lane

add_i = _binary(lambda b, x, y: b.add(x, y))
sub_i = _binary(lambda b, x, y: b.sub(x, y))
mul_i = _binary(lambda b, x, y: b.mul(x, y))
and_i = _binary(lambda b, x, y: b.and_(x, y))
add_b = _binary(lambda b, x, y: b.bitcast(b.add(b.bitcast(x, BYTES), b.bitcast(y, BYTES)), IV))
sub_b = _binary(lambda b, x, y: b.bitcast(b.sub(b.bitcast(x, BYTES), b.bitcast(y, BYTES)), IV))
add_f = _binary(lambda b, x, y: b.fadd(x, y))
sub_f = _binary(lambda b, x, y: b.fsub(x, y))
mul_f = _binary(lambda b, x, y: b.fmul(x, y))
div_f = _binary(lambda b, x, y: b.fdiv(x, y))
max_f = _binary(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
min_f = _binary(lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
less_i = _binary(lambda b, x, y: b.sext(b.fcmp_ordered("<", x, y), IV), "i32")
fma = _ternary(lambda b, x, y, z: call(b, "llvm.fma.v16f32", FV, x, y, z))
shift_right = _binary(lambda b, x, n: b.lshr(x, _splat(b, b.trunc(n, I32))))
shift_left = _binary(lambda b, x, n: b.shl(x, _splat(b, b.trunc(n, I32))))
to_f = _unary(lambda b, x: b.sitofp(x, FV), "f32")
round_i = _unary(lambda b, x: b.fptosi(call(b, "llvm.rint.v16f32", FV, x), IV), "i32")
bits_f = _unary(lambda b, x: b.bitcast(x, FV), "f32")
abs_f = _unary(lambda b, x: call(b, "llvm.fabs.v16f32", FV, x))
choose_f = _ternary(lambda b, c, x, y: b.select(b.icmp_signed("!=", c, repeat(0)), x, y), "f32")
choose_f.__doc__ = "Lanes of `x` where the i32 lane of `c` is not zero, else of `y`."
equal_i = _binary(lambda b, x, y: b.sext(b.icmp_signed("==", x, y), IV))


@intrinsic
def splat_i(typingctx, value):
    """One integer in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, builder.trunc(args[0], I32) if args[0].type.width > 32 else args[0])

    return Vectors("i32")(value), codegen


@intrinsic
def splat_f(typingctx, value):
    """One float32 in every lane."""

    def codegen(context, builder, sig, args):
        return _splat(builder, args[0])

    return Vectors("f32")(types.float32), codegen


@intrinsic
def zeros_f(typingctx, rows):
    """`rows` vectors of 0.0."""

    def codegen(context, builder, sig, args):
        return join(builder, [FV([0.0] * LANES)] * rows.value)

    return Vectors("f32", rows.value)(rows), codegen


@intrinsic
def zeros_i(typingctx, rows):
    """`rows` vectors of 0."""

    def codegen(context, builder, sig, args):
        return join(builder, [repeat(0)] * rows.value)

    return Vectors("i32", rows.value)(rows), codegen


# ---------------------------------------------------------------- memory


def pointer(builder: Any, address: Any, kind: ir.Type) -> Any:
    """An address as a pointer to an LLVM type."""
    return builder.inttoptr(address, kind.as_pointer())


def _row_addresses(builder: Any, address: Any, stride: Any, rows: int) -> list[Any]:
    return [builder.add(address, builder.mul(stride, I64(r))) for r in range(rows)]


def _loader(lane: str, emit: Emit) -> Any:
    """`load(rows, address, stride)`: row r comes from `address + r * stride` (bytes)."""

    def load(typingctx, rows, address, stride):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where = _row_addresses(builder, args[1], args[2], rows.value)
            return join(builder, [emit(builder, at) for at in where])

        return Vectors(lane, rows.value)(rows, types.int64, types.int64), codegen

    return intrinsic(load)


def _load(builder: Any, address: Any, kind: ir.Type, align: int = 1) -> Any:
    return builder.load(pointer(builder, address, kind), align=align)


def _load_quad(builder: Any, address: Any) -> Any:
    return shuffle(builder, _load(builder, address, ir.VectorType(I32, 4)), [0, 1, 2, 3] * 4)


def _load_half(builder: Any, address: Any) -> Any:
    return builder.fpext(_load(builder, address, ir.VectorType(F16, LANES)), FV)


def _load_bytes(builder: Any, address: Any) -> Any:
    wide = builder.sext(_load(builder, address, ir.VectorType(I8, LANES)), IV)
    return builder.sitofp(wide, FV)


load_f = _loader("f32", lambda b, at: _load(b, at, FV))
load_i = _loader("i32", lambda b, at: _load(b, at, IV))
load_half = _loader("f32", _load_half)
load_bytes = _loader("f32", _load_bytes)
spread_f = _loader("f32", lambda b, at: _splat(b, _load(b, at, F32)))
spread_i = _loader("i32", lambda b, at: _splat(b, _load(b, at, I32)))
spread_quad = _loader("i32", _load_quad)
load_f.__doc__ = "Rows of sixteen float32."
load_i.__doc__ = "Rows of sixteen int32, or of 64 bytes."
load_half.__doc__ = "Rows of sixteen float16, as float32."
load_bytes.__doc__ = "Rows of sixteen int8, as float32."
spread_f.__doc__ = "Rows of one float32 in every lane."
spread_i.__doc__ = "Rows of one int32 (or four bytes) in every lane."
spread_quad.__doc__ = "Rows of sixteen bytes, repeated four times."


def _storer(emit: Emit) -> Any:
    """`store(address, stride, vectors)`: row r goes to `address + r * stride` (bytes)."""

    def store(typingctx, address, stride, value):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            where = _row_addresses(builder, args[0], args[1], value.rows)
            for at, part in zip(where, split(builder, args[2], value.rows), strict=True):
                narrow = emit(builder, part)
                builder.store(narrow, pointer(builder, at, narrow.type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, value), codegen

    return intrinsic(store)


def _scalar_storer(kind: Any) -> Any:
    def store(typingctx, address, value):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[1], pointer(builder, args[0], args[1].type), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return intrinsic(store)


@intrinsic
def load_f32(typingctx, address):
    """One float32."""

    def codegen(context, builder, sig, args):
        return _load(builder, args[0], F32)

    return types.float32(types.int64), codegen


store_f32, store_i32 = _scalar_storer(types.float32), _scalar_storer(types.int32)
store_f = _storer(lambda b, x: x)
store_half = _storer(lambda b, x: b.fptrunc(x, ir.VectorType(F16, LANES)))
store_bytes = _storer(lambda b, x: b.trunc(x, ir.VectorType(I8, LANES)))
store_f.__doc__ = "Rows of sixteen 32-bit lanes."
store_half.__doc__ = "Rows of sixteen float32, as float16."
store_bytes.__doc__ = "Rows of sixteen int32, the low byte of each."


@intrinsic
def fetch(typingctx, address, lines):
    """Tell the core that so many lines of 64 bytes will be read soon."""

    def codegen(context, builder, sig, args):
        for n in range(lines.value):
            at = pointer(builder, builder.add(args[0], I64(64 * n)), I8)
            call(builder, "llvm.prefetch.p0", ir.VoidType(), at, I32(0), I32(3), I32(1))
        return context.get_dummy_value()

    return types.void(types.int64, lines), codegen


# ---------------------------------------------------------------- across lanes


def _reduce(emit: Emit, lane: str) -> Any:
    def reduce(typingctx, value):  # type: ignore[no-untyped-def]
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            vector, width = args[0], LANES
            while width > 1:
                width //= 2
                low = shuffle(builder, vector, list(range(width)))
                vector = emit(builder, low, shuffle(builder, vector, list(range(width, 2 * width))))
            return builder.extract_element(vector, I32(0))

        return (types.float32 if lane == "f32" else types.int32)(Vectors(lane)), codegen

    return intrinsic(reduce)


total_f = _reduce(lambda b, x, y: b.fadd(x, y), "f32")
total_i = _reduce(lambda b, x, y: b.add(x, y), "i32")
largest_f = _reduce(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y), "f32")


@intrinsic
def store_totals(typingctx, address, value):
    """The sum of each row's lanes, as `total_f` adds them, one float32 after another; a power of two of rows."""

    def codegen(context, builder, sig, args):
        parts, segment = split(builder, args[1], value.rows), LANES
        while len(parts) > 1:  # halves of two vectors' segments side by side: one addition for both
            segment //= 2
            starts = range(0, 2 * LANES, 2 * segment)
            low = ir.VectorType(I32, LANES)([s + i for s in starts for i in range(segment)])
            high = ir.VectorType(I32, LANES)([s + segment + i for s in starts for i in range(segment)])
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [
                builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)) for a, b in pairs
            ]
        whole = parts[0]
        while segment > 1:
            half, width = segment // 2, whole.type.count
            starts = range(0, width, segment)
            whole = builder.fadd(
                shuffle(builder, whole, [s + i for s in starts for i in range(half)]),
                shuffle(builder, whole, [s + half + i for s in starts for i in range(half)]),
            )
            segment = half
        builder.store(whole, pointer(builder, args[0], whole.type), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


total_f.__doc__ = "Sum of one vector's lanes, by halves: always the same order."
total_i.__doc__ = "Sum of one vector's lanes."
largest_f.__doc__ = "Largest lane of one vector."
