"""The operations that kernel sets differ in: a dot product of bytes, and choices of bytes by index."""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .simd import BYTES, I8, I16, I32, I64, IV, NARROW, Vectors, call, per_row, repeat, shuffle


def _dot_vnni(builder: Any, total: Any, weights: Any, values: Any, small: bool) -> Any:
    # up to LLVM 21 the operands are declared as i32 lanes
    kind = BYTES if llvmlite.binding.llvm_version_info[0] >= 22 else IV
    operands = (builder.bitcast(x, kind) for x in (weights, values))
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", IV, total, *operands)


def _dot_avx2(builder: Any, total: Any, weights: Any, values: Any, small: bool) -> Any:
    if not small:  # pairs of products must stay below 2**15: bit 7 goes alone
        top = builder.and_(builder.lshr(weights, repeat(7)), repeat(0x01010101))
        high = _dot_avx2(builder, repeat(0), top, values, True)
        total = builder.add(total, builder.shl(high, repeat(7)))
        weights = builder.and_(weights, repeat(0x7F7F7F7F))
    byte_half, short_half, int_half = (ir.VectorType(t, n) for t, n in ((I8, 32), (I16, 16), (I32, 8)))
    halves = []
    for start in (0, 32):
        part = list(range(start, start + 32))
        w, x = (shuffle(builder, builder.bitcast(v, BYTES), part) for v in (weights, values))
        assert w.type == byte_half
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", short_half, w, x)
        halves.append(call(builder, "llvm.x86.avx2.pmadd.wd", int_half, pairs, short_half([1] * 16)))
    both = builder.shuffle_vector(*halves, IV(list(range(16))))
    return builder.add(total, both)


def _dot_portable(builder: Any, total: Any, weights: Any, values: Any, small: bool) -> Any:
    for i in range(4):
        w = builder.and_(builder.lshr(weights, repeat(8 * i)), repeat(0xFF))
        x = builder.ashr(builder.shl(values, repeat(24 - 8 * i)), repeat(24))
        total = builder.add(total, builder.mul(w, x))
    return total


DOTS = {"avx512vnni": _dot_vnni, "avx2": _dot_avx2, "portable": _dot_portable}


@intrinsic
def dot4(typingctx, isa, small, total, weights, values):
    """total + sum of four products of u8 weights and i8 values per lane, exact. `small`: NARROW or WIDE weights."""
    sig = Vectors("i32", max(weights.rows, values.rows))(isa, small, total, weights, values)
    emit = DOTS[isa.value]

    def each(builder, _isa, _small, acc, w, x):
        return emit(builder, acc, w, x, small.value == NARROW.value)

    return sig, per_row(sig, each)


def _shuffle_512(builder: Any, values: Any, index: Any) -> Any:
    return call(builder, "llvm.x86.avx512.pshuf.b.512", BYTES, values, index)


def _shuffle_avx2(builder: Any, values: Any, index: Any) -> Any:
    parts = []
    for start in (0, 32):
        half = [shuffle(builder, x, list(range(start, start + 32))) for x in (values, index)]
        parts.append(call(builder, "llvm.x86.avx2.pshuf.b", half[0].type, *half))
    return builder.shuffle_vector(*parts, ir.VectorType(I32, 64)(list(range(64))))


def _shuffle_portable(builder: Any, values: Any, index: Any) -> Any:
    chosen = BYTES([0] * 64)
    for n in range(16):
        here = builder.icmp_signed("==", index, BYTES([n] * 64))
        chosen = builder.select(here, shuffle(builder, values, [n] * 64), chosen)
    return chosen


_SHUFFLES = {"avx512vnni": _shuffle_512, "avx2": _shuffle_avx2, "portable": _shuffle_portable}


def shuffle_bytes(builder: Any, isa: Any, values: Any, index: Any) -> Any:
    """Each byte: the one of sixteen (repeated four times) that its index, 0 to 15, names."""
    parts = (builder.bitcast(x, BYTES) for x in (values, index))
    return builder.bitcast(_SHUFFLES[isa.value](builder, *parts), IV)


@intrinsic
def pick4(typingctx, isa, values, index):
    """Byte i of each lane: byte `4 * i + index` of sixteen values (`spread_quad`), each index byte being 0 to 3."""
    sig = Vectors("i32", values.rows)(isa, values, index)

    def each(builder, _isa, x, n):
        if isa.value != "portable":
            return shuffle_bytes(builder, isa, x, builder.or_(n, repeat(0x0C080400)))
        x, n = (builder.bitcast(v, BYTES) for v in (x, n))
        chosen = BYTES([0] * 64)  # four candidates, not sixteen
        for c in range(4):
            candidate = shuffle(builder, x, [c, 4 + c, 8 + c, 12 + c] * 16)
            chosen = builder.select(builder.icmp_signed("==", n, BYTES([c] * 64)), candidate, chosen)
        return builder.bitcast(chosen, IV)

    return sig, per_row(sig, each)


@intrinsic
def pick8(typingctx, isa, low, high, index):
    """Byte i of each lane: byte `8 * i + index` of 32 values (two of `spread_quad`), each index byte being 0 to 7."""
    sig = Vectors("i32", low.rows)(isa, low, high, index)

    def each(builder, _isa, x, y, n):
        n = builder.or_(n, repeat(0x08000800))
        first, second = (shuffle_bytes(builder, isa, v, n) for v in (x, y))
        kept, taken = builder.and_(first, repeat(0x0000FFFF)), builder.and_(second, repeat(0xFFFF0000))
        return builder.or_(kept, taken)

    return sig, per_row(sig, each)


@intrinsic
def look_up(typingctx, isa, table, index, mask_at):
    """A table of 32 bytes (`Tag`): entry index (0 to 15), plus 16 where a bit of the 64 at an address is set."""
    sig = Vectors("i32")(isa, table, index, types.int64)

    def codegen(context, builder, sig, args):
        mask = builder.load(builder.inttoptr(args[3], I64.as_pointer()), align=1)
        upper = builder.bitcast(mask, ir.VectorType(ir.IntType(1), 64))
        halves = []
        for start in (0, 16):
            entries = BYTES(list(table.value[start : start + 16]) * 4)
            halves.append(builder.bitcast(shuffle_bytes(builder, isa, entries, args[2]), BYTES))
        return builder.bitcast(builder.select(upper, halves[1], halves[0]), IV)

    return sig, codegen


def _quad(code: int) -> int:
    """Five bits of a quad of `andes_packing.formats.ThreeOfFour` -> its four codes plus one, a byte each."""
    dead, signs = code & 3, code >> 2
    places = [c for c in range(4) if c != dead]
    return sum(2 * (signs >> n & 1) << 8 * c for n, c in enumerate(places)) | 1 << 8 * dead


_QUADS = [_quad(code) for code in range(32)]


def _quads_512(builder: Any, code: Any) -> Any:
    first, second = (IV(_QUADS[start : start + 16]) for start in (0, 16))
    return call(builder, "llvm.x86.avx512.vpermi2var.d.512", IV, first, code, second)


def _quads_anywhere(builder: Any, code: Any) -> Any:
    dead, signs = builder.and_(code, repeat(3)), builder.lshr(code, repeat(2))
    below = builder.sub(builder.shl(repeat(1), dead), repeat(1))
    above = builder.shl(builder.and_(signs, builder.xor(below, repeat(0xFFFFFFFF))), repeat(1))
    spread = builder.mul(builder.or_(builder.and_(signs, below), above), repeat(0x00204081))  # bit i to byte i
    pluses = builder.shl(builder.and_(spread, repeat(0x01010101)), repeat(1))
    return builder.or_(pluses, builder.shl(repeat(1), builder.shl(dead, repeat(3))))


@intrinsic
def signs4(typingctx, isa, low, fifth):
    """Low four bits and the fifth of a quad in each lane -> its codes plus one: four bytes that are 0, 1 or 2."""
    emit = _quads_512 if isa.value == "avx512vnni" else _quads_anywhere

    def codegen(context, builder, sig, args):
        return emit(builder, builder.or_(args[1], builder.shl(args[2], repeat(4))))

    return Vectors("i32")(isa, low, fifth), codegen
