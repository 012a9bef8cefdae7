"""Bit fields in 64-byte vectors: byte 4 * lane + i holds lane's columns k + i, k + 4 + i …, lowest bits first.

Four neighbouring bytes of a lane are what a dot product of four 8-bit pairs takes, so a kernel needs no sums
across lanes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from andes_packing.formats.base import LANES

VECTOR = 4 * LANES
"""Bytes of a vector."""

Bytes = NDArray[np.uint8]


def pack_fields(fields: Bytes, bits: int) -> Bytes:
    """(B, 16, G, K) fields of `bits` bits -> (B, G, K * bits / 32, 64)."""
    per_byte = 8 // bits
    blocks, lanes, groups, count = fields.shape
    vectors = count // (4 * per_byte)
    split = fields.reshape(blocks, lanes, groups, vectors, per_byte, 4)
    quads = split[..., 0, :].copy()
    for j in range(1, per_byte):
        quads |= split[..., j, :] << np.uint8(bits * j)
    # four bytes move together: one copy of 32-bit words
    words = quads.view(np.uint32)[..., 0].transpose(0, 2, 3, 1)
    return np.ascontiguousarray(words).view(np.uint8).reshape(blocks, groups, vectors, VECTOR)


def unpack_fields(vectors: Bytes, bits: int) -> Bytes:
    """The inverse of `pack_fields`: (B, G, V, 64) -> (B, 16, G, K)."""
    per_byte = 8 // bits
    blocks, groups, count, _ = vectors.shape
    words = np.ascontiguousarray(vectors).view(np.uint32).transpose(0, 3, 1, 2)
    quads = np.ascontiguousarray(words).view(np.uint8).reshape(blocks, LANES, groups, count, 4)
    mask = np.uint8((1 << bits) - 1)
    split = np.stack([(quads >> np.uint8(bits * j)) & mask for j in range(per_byte)], axis=-2)
    return split.reshape(blocks, LANES, groups, count * per_byte * 4)


def pack_masks(flags: Bytes) -> Bytes:
    """(B, 16, G, K) zeros and ones -> (B, G, 2 K): for every four 64 bits, bit 4 * lane + i that of k + i."""
    blocks, lanes, groups, count = flags.shape
    split = flags.reshape(blocks, lanes, groups, count // 4, 4).transpose(0, 2, 3, 1, 4)
    return np.packbits(split.reshape(blocks, groups, count * LANES), axis=-1, bitorder="little")


def unpack_masks(masks: Bytes) -> Bytes:
    """The inverse of `pack_masks`."""
    blocks, groups, size = masks.shape
    split = np.unpackbits(masks, axis=-1, bitorder="little").reshape(blocks, groups, size // 8, LANES, 4)
    return split.transpose(0, 3, 1, 2, 4).reshape(blocks, LANES, groups, size // 2)
