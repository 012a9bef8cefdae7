"""Rows of a packed matrix as float32: the embeddings of tokens, where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from andes_packing.formats import FORMATS, LANES, Half, OneOfFour, ThreeOfFour, TwoOfEight
from numba.core import types
from numba.extending import intrinsic, overload

from .activations import address
from .machine import kept
from .product import FIRST, SECOND
from .simd import F16, F32


@intrinsic
def _half(typingctx, at):
    """The float16 at an address, as float32."""

    def codegen(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], F16.as_pointer())
        return builder.fpext(builder.load(pointer, align=1), F32)

    return types.float32(types.int64), codegen


def unpack(fmt: Any, group: Any, lane: int, scale: float, out: Any) -> None:
    """Codes of one group of a row block, without scales -> the numbers of one lane; out is all zeros."""
    raise NotImplementedError("compiled code only")


@overload(unpack)
def _unpack(fmt, group, lane, scale, out):
    layout = FORMATS[fmt.value]
    if isinstance(layout, TwoOfEight):
        return _pairs(layout)
    if isinstance(layout, ThreeOfFour):
        return _signs()
    return _sparse(layout) if isinstance(layout, OneOfFour) else _dense(layout)


def _dense(layout):
    bits, low, fields = layout.grid.bits, layout.grid.low, 8 // layout.grid.bits
    vectors, mask = layout.group // (4 * fields), (1 << bits) - 1

    def dense(fmt, group, lane, scale, out):
        for n in range(vectors):
            for i in range(4):
                stored = np.int32(group[64 * n + 4 * lane + i])
                for j in range(fields):
                    code = ((stored >> (bits * j)) & mask) + low
                    out[4 * (fields * n + j) + i] = np.float32(code) * scale

    return dense


def _sparse(layout):
    bits, low, step = layout.grid.bits, layout.grid.low, layout.grid.step
    fields, parts = 8 // bits, layout.group // 64
    size, mask = 64 + 32 * bits, (1 << bits) - 1

    def sparse(fmt, group, lane, scale, out):
        for n in range(parts):
            for i in range(4):
                at = size * n + 4 * lane + i
                index = np.int32(group[at])
                for j in range(4):
                    stored = np.int32(group[at + 64 + 64 * (j // fields)])
                    code = ((stored >> (bits * (j % fields))) & mask) * step + low
                    out[64 * n + 16 * j + 4 * i + ((index >> (2 * j)) & 3)] = np.float32(code) * scale

    return sparse


def _pairs(layout):
    octets, low = layout.group // 8, layout.grid.low
    first, second = np.array(FIRST.value, np.int64), np.array(SECOND.value, np.int64)

    def pairs(fmt, group, lane, scale, out):
        for v in range(octets // 4):
            for i in range(4):
                place = 4 * lane + i
                high = (np.int32(group[8 * v + place // 8]) >> (place % 8)) & 1
                pattern = (np.int32(group[2 * octets + 64 * (v // 2) + place]) >> (4 * (v % 2))) & 15 | high << 4
                both, at = np.int32(group[10 * octets + 64 * v + place]), 32 * v + 8 * i
                out[at + first[pattern]] = np.float32((both & 15) + low) * scale
                out[at + second[pattern]] = np.float32((both >> 4) + low) * scale

    return pairs


def _signs():
    def signs(fmt, group, lane, scale, out):
        for quad in range(32):
            at = 4 * lane + quad % 8 // 2
            low = (np.int32(group[64 * (quad // 8) + at]) >> (4 * (quad % 2))) & 15
            fifth = (np.int32(group[256 + 4 * lane + quad // 8]) >> (quad % 8)) & 1
            dead, plus = low & 3, low >> 2 | fifth << 2
            for n in range(3):
                code = 2 * ((plus >> n) & 1) - 1
                out[4 * quad + n + (1 if n >= dead else 0)] = np.float32(code) * scale

    return signs


def unpack_row(fmt: Any, block: Any, lane: int, out: Any) -> None:
    """Lane of a row block (bytes,) -> numbers in out, as many as fill it."""
    raise NotImplementedError("compiled code only")


@overload(unpack_row)
def _unpack_row(fmt, block, lane, out):
    layout = FORMATS[fmt.value]
    size, group = layout.group_bytes, layout.group
    if isinstance(layout, Half):

        def halves(fmt, block, lane, out):
            for column in range(out.size):
                out[column] = _half(address(block) + 2 * (LANES * column + lane))

        return halves

    def scaled(fmt, block, lane, out):
        numbers = np.zeros(group, np.float32)
        for start in range(0, out.size, group):
            at = start // group * size
            numbers[:] = 0
            unpack(fmt, block[at + 32 : at + size], lane, _half(address(block) + at + 2 * lane), numbers)
            for column in range(start, min(start + group, out.size)):
                out[column] = numbers[column - start]

    return scaled


@kept
def look_up(fmt, packed, ids, out):
    """Rows `ids` (n,) of packed (row blocks, bytes) -> the first n rows of out (…, columns), as `Format.dequantise`."""
    for n in range(ids.size):
        unpack_row(fmt, packed[ids[n] // LANES], ids[n] % LANES, out[n])
