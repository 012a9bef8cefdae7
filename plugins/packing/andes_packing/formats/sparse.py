"""N:M formats: of every m neighbouring weights of a row n survive; their positions are stored beside their codes."""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import combinations
from typing import ClassVar

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from andes_packing.formats.base import Array, pad
from andes_packing.formats.dense import Scaled
from andes_packing.formats.fields import VECTOR, pack_fields, pack_masks, unpack_fields, unpack_masks
from andes_packing.formats.grid import fit
from andes_sdk.errors import CheckpointError
from andes_sdk.types import Codes

Bytes = NDArray[np.uint8]


@frozen(kw_only=True)
class Sparse(Scaled):
    """What N:M formats share: selection by magnitude, and the way between dense and surviving codes."""

    n: ClassVar[int]
    m: ClassVar[int]

    @abstractmethod
    def encode_survivors(self, positions: Bytes, stored: Bytes) -> Bytes:
        """Ascending positions and stored codes (B, 16, G, group / m, n) -> bytes (B, G, code_bytes)."""

    @abstractmethod
    def decode_survivors(self, packed: Bytes) -> tuple[Bytes, Bytes]:
        """The inverse of `encode_survivors`."""

    def quantise(self, weight: Array, scales: Array | None = None, *, search: bool = True) -> Codes:
        """Keep the n largest magnitudes of every m weights, and round them to nearest."""
        x, (rows, cols) = self._groups(weight), weight.shape
        blocks = x.reshape(len(x), self.group // self.m, self.m)
        where = largest(np.abs(blocks), self.n)
        kept = np.take_along_axis(blocks, where, axis=-1).reshape(len(x), self.group // self.m * self.n)
        if scales is not None:
            chosen = self._given(scales, rows, cols)
        else:
            real = self._real(rows, cols) if cols % self.group else None
            chosen = fit(kept, self.grid, search=search, who=self.name, real=real)
        codes = self.grid.round(kept, chosen).astype(np.int8)
        return self._codes(_spread(where, codes.reshape(where.shape), self.m), chosen, rows, cols)

    def _real(self, rows: int, cols: int) -> NDArray[np.bool_]:
        """(rows * groups, survivors of a group): False for those of padding, which a grid without zero cannot skip."""
        first = np.arange(-(-cols // self.group) * self.group // self.m) * self.m
        marks = np.repeat(first < cols, self.n)
        return np.tile(marks.reshape(-1, self.group // self.m * self.n), (rows, 1))

    def pack(self, codes: Codes) -> Bytes:
        """As `Format.pack`; a grid without zero needs exactly n codes that are not zero in every m."""
        if self.grid.step > 1:
            alive = pad(codes.values, 1, self.m) != 0
            count = alive.reshape(alive.shape[0], alive.shape[1] // self.m, self.m).sum(axis=2)
            wanted = np.full(count.shape[1], self.n)
            if short := codes.values.shape[1] % self.m:
                wanted[-1] = min(self.n, short)
            if (count != wanted).any():
                raise CheckpointError(
                    f"not {self.n} of every {self.m} codes survive", who=self.name, fix="its grid has no zero"
                )
        return super().pack(codes)

    def encode_codes(self, codes: NDArray[np.int8]) -> Bytes:
        """Dense codes -> survivors -> bytes."""
        blocks = codes.reshape(*codes.shape[:3], self.group // self.m, self.m)
        alive = blocks != 0
        if (alive.sum(axis=-1) > self.n).any():
            raise CheckpointError(
                f"more than {self.n} of {self.m} codes survive", who=self.name, fix="prune the weights first"
            )
        where = largest(alive.astype(np.int8), self.n)
        values = np.take_along_axis(blocks, where, axis=-1)
        if self.grid.step > 1:
            # only padding has no survivor here; any code will do for it
            values = np.where(values == 0, np.int8(self.grid.high), values)
        return self.encode_survivors(where.astype(np.uint8), self.grid.stored(values, self.name))

    def decode_codes(self, packed: Bytes) -> NDArray[np.int8]:
        """Bytes -> survivors -> dense codes."""
        where, stored = self.decode_survivors(packed)
        values = _spread(where.astype(np.intp), self.grid.codes(stored), self.m)
        return values.reshape(*values.shape[:3], self.group)


@frozen(kw_only=True)
class OneOfFour(Sparse):
    """1:4, with survivors of 4 or 2 bits. Per 64 columns: a vector of 2-bit positions, then 2 or 1 vectors of codes.

    Bits 2 j of byte 4 * lane + i are the position of the survivor of columns 16 j + 4 i … 16 j + 4 i + 3: with 4 i
    added they are a byte shuffle of 16 activations. Codes lie in the same order.
    """

    n: ClassVar[int] = 1
    m: ClassVar[int] = 4

    @property
    def code_bytes(self) -> int:
        """Position and code of every fourth column, of 16 rows."""
        return self.group // 64 * (1 + self.grid.bits // 2) * VECTOR

    def encode_survivors(self, positions: Bytes, stored: Bytes) -> Bytes:
        """Positions and codes of 64 columns together."""
        index = pack_fields(positions[..., 0], 2)  # (B, G, group / 64, 64)
        values = pack_fields(np.ascontiguousarray(stored[..., 0]), self.grid.bits)
        blocks, groups, chunks, _ = index.shape
        both = [index[:, :, :, None], values.reshape(blocks, groups, chunks, self.grid.bits // 2, VECTOR)]
        return np.concatenate(both, axis=3).reshape(blocks, groups, self.code_bytes)

    def decode_survivors(self, packed: Bytes) -> tuple[Bytes, Bytes]:
        """The inverse of `encode_survivors`."""
        blocks, groups, _ = packed.shape
        each = self.grid.bits // 2
        both = packed.reshape(blocks, groups, self.group // 64, 1 + each, VECTOR)
        values = both[:, :, :, 1:].reshape(blocks, groups, self.group // 64 * each, VECTOR)
        stored = unpack_fields(values, self.grid.bits)
        return unpack_fields(both[:, :, :, 0], 2)[..., None], stored[..., None]


PAIRS = np.array(list(combinations(range(8), 2)), np.uint8)
"""The 28 patterns of two survivors among eight, in lexicographic order."""

PATTERN = np.zeros((8, 8), np.uint8)
PATTERN[PAIRS[:, 0], PAIRS[:, 1]] = np.arange(len(PAIRS))


@frozen(kw_only=True)
class TwoOfEight(Sparse):
    """2:8 with 4-bit survivors and 5-bit patterns, 32 + 128 + 256 bytes per 128 columns of a row block.

    First the high bits of the 16 patterns as four masks of 64 bits (bit 4 * lane + i of mask v: columns 8 (4 v + i)),
    then their low four bits in two vectors, then four vectors of codes: byte 4 * lane + i of vector v belongs to
    columns 8 (4 v + i), its low half to the first survivor and its high half to the second.
    """

    n: ClassVar[int] = 2
    m: ClassVar[int] = 8

    @property
    def code_bytes(self) -> int:
        """13 bits for every 8 columns, of 16 rows."""
        return self.group // 8 * 26

    def encode_survivors(self, positions: Bytes, stored: Bytes) -> Bytes:
        """High bits, low bits, codes."""
        pattern = PATTERN[positions[..., 0], positions[..., 1]]
        codes = stored[..., 0] | stored[..., 1] << np.uint8(4)
        parts = [pack_masks(pattern >> np.uint8(4)), pack_fields(pattern & np.uint8(15), 4), pack_fields(codes, 8)]
        return np.concatenate([p.reshape(*p.shape[:2], math.prod(p.shape[2:])) for p in parts], axis=2)

    def decode_survivors(self, packed: Bytes) -> tuple[Bytes, Bytes]:
        """The inverse of `encode_survivors`.

        Raises:
            CheckpointError: a pattern that does not exist.
        """
        octets = self.group // 8
        high, low, codes = np.split(packed, [2 * octets, 10 * octets], axis=2)
        shape = packed.shape[:2]
        pattern = unpack_fields(low.reshape(*shape, octets // 8, VECTOR), 4) | unpack_masks(high) << np.uint8(4)
        if pattern.size and pattern.max() >= len(PAIRS):
            raise CheckpointError("a pattern of survivors that does not exist", who=self.name, fix="pack it again")
        both = unpack_fields(codes.reshape(*shape, octets // 4, VECTOR), 8)
        return PAIRS[pattern], np.stack([both & np.uint8(15), both >> np.uint8(4)], axis=-1)


@frozen(kw_only=True)
class ThreeOfFour(Sparse):
    """3:4 of signs: of every four columns one is zero, the others -1 or 1. Five bits, 320 bytes per 128 columns.

    Bits 0 and 1 are the position of the zero, 2 to 4 the signs of the others, ascending, 1 for plus. First the low four
    bits of 32 quads in four vectors: bits 4 j … of word `lane` of vector v belong to columns 4 (8 v + j) … + 3.
    Then the fifth bits: bit q of the word `lane` of the last vector belongs to columns 4 q … 4 q + 3.
    """

    n: ClassVar[int] = 3
    m: ClassVar[int] = 4
    group: int = field(default=128, validator=attrs.validators.in_((128,)))

    @property
    def code_bytes(self) -> int:
        """Five bits for every four columns, of 16 rows."""
        return 5 * VECTOR

    def encode_survivors(self, positions: Bytes, stored: Bytes) -> Bytes:
        """The zero's position is what three of 0 + 1 + 2 + 3 lack."""
        dead = 6 - positions.astype(np.uint32).sum(axis=-1)
        signs = stored.astype(np.uint32)
        code = dead | signs[..., 0] << 2 | signs[..., 1] << 3  # (B, 16, G, 32)
        blocks, lanes, groups, _ = code.shape
        each = code.reshape(blocks, lanes, groups, 4, 8) << np.arange(0, 32, 4, dtype=np.uint32)
        low = np.bitwise_or.reduce(each, axis=-1).transpose(0, 2, 3, 1)  # (B, G, 4, 16)
        fifth = np.bitwise_or.reduce(signs[..., 2] << np.arange(32, dtype=np.uint32), axis=-1).transpose(0, 2, 1)
        words = np.concatenate([low, fifth[:, :, None]], axis=2).astype("<u4")
        return np.ascontiguousarray(words).view(np.uint8).reshape(blocks, groups, self.code_bytes)

    def decode_survivors(self, packed: Bytes) -> tuple[Bytes, Bytes]:
        """The inverse of `encode_survivors`."""
        blocks, groups, _ = packed.shape
        words = np.ascontiguousarray(packed).view("<u4").reshape(blocks, groups, 5, 16).transpose(0, 3, 1, 2)
        code = (words[..., :4, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).reshape(blocks, 16, groups, 32)
        fifth = words[..., 4, None] >> np.arange(32, dtype=np.uint32) & 1
        slots = np.arange(3, dtype=np.uint32)
        positions = slots + (slots >= (code & 3)[..., None])
        signs = np.stack([code >> 2 & 1, code >> 3 & 1, fifth], axis=-1)
        return positions.astype(np.uint8), signs.astype(np.uint8)


def largest(score: Array, n: int) -> NDArray[np.intp]:
    """Positions of the n largest of the last axis, ascending; the earlier of equals. Scores are not negative."""
    slots = np.moveaxis(score, -1, 0).copy()  # (m, ...): argmax over a short last axis is slow
    found = []
    for _ in range(n):
        best, where = slots[0].copy(), np.zeros(slots.shape[1:], np.intp)
        for j in range(1, len(slots)):
            where[slots[j] > best] = j
            np.maximum(best, slots[j], out=best)
        found.append(where)
        if n > 1:
            np.put_along_axis(slots, where[None], -1, axis=0)
    return np.sort(np.stack(found, axis=-1), axis=-1) if n > 1 else found[0][..., None]


def _spread(where: NDArray[np.intp], values: NDArray[np.int8], m: int) -> NDArray[np.int8]:
    """Survivors (..., n) -> (..., m), zero elsewhere."""
    dense = np.zeros((*where.shape[:-1], m), np.int8)
    np.put_along_axis(dense, where, values, axis=-1)
    return dense
