"""Formats that store every weight: 16-bit floats, and integers of 8, 4 or 2 bits with a scale for each group."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from andes_packing.formats.base import LANES, Array, Format, checked, pad
from andes_packing.formats.fields import VECTOR, pack_fields, unpack_fields
from andes_packing.formats.grid import Grid, fit
from andes_sdk.errors import CheckpointError
from andes_sdk.numbers import half_scales
from andes_sdk.types import Codes

SCALES = 2 * LANES
"""Bytes of the float16 scales of one group of a row block."""


@frozen(kw_only=True)
class Half(Format):
    """float16 without scales; per column the 16 lanes. A group of two columns is one 64-byte vector."""

    name: str = "f16"
    group: int = 2

    @property
    def group_bytes(self) -> int:
        """One vector for two columns."""
        return 2 * LANES * self.group

    def quantise(self, weight: Array, scales: Array | None = None, *, search: bool = True) -> Codes:
        """Round to float16; there are no scales to choose."""
        weight = checked(weight, self.name)
        with np.errstate(over="ignore"):
            values = weight.astype(np.float16)
        if not np.isfinite(values).all():
            raise CheckpointError("weights too large for float16", who=self.name, fix="check the checkpoint")
        return Codes(values, np.zeros((len(values), 0), np.float16), self.group)

    def encode(self, values: Array, scales: Array) -> NDArray[np.uint8]:
        """Columns one after another, the lanes of each together."""
        turned = np.ascontiguousarray(values.astype("<f2").transpose(0, 2, 3, 1))
        return turned.view(np.uint8).reshape(*turned.shape[:2], self.group_bytes)

    def decode(self, packed: NDArray[np.uint8]) -> tuple[Array, Array]:
        """The inverse of `encode`."""
        blocks, groups, _ = packed.shape
        turned = np.ascontiguousarray(packed).view("<f2").reshape(blocks, groups, self.group, LANES)
        return turned.transpose(0, 3, 1, 2), np.zeros((blocks, LANES, 0), np.float16)


@frozen(kw_only=True)
class Scaled(Format):
    """Codes with a float16 scale for every row and group. Per group of a row block: 16 scales, then the codes."""

    grid: Grid

    @property
    @abstractmethod
    def code_bytes(self) -> int:
        """Bytes of one group of one row block without its scales."""

    @abstractmethod
    def encode_codes(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Codes (B, 16, G, group) -> bytes (B, G, code_bytes)."""

    @abstractmethod
    def decode_codes(self, packed: NDArray[np.uint8]) -> NDArray[np.int8]:
        """The inverse of `encode_codes`."""

    def facts(self) -> dict[str, Any]:
        """With the grid; how its scales are searched does not change what the bytes mean."""
        grid = {name: getattr(self.grid, name) for name in ("bits", "low", "high", "step")}
        return {**super().facts(), **grid}

    @property
    def group_bytes(self) -> int:
        """Scales and codes."""
        return SCALES + self.code_bytes

    def encode(self, values: Array, scales: Array) -> NDArray[np.uint8]:
        """Scales, then codes."""
        turned = np.ascontiguousarray(scales.astype("<f2").transpose(0, 2, 1)).view(np.uint8)  # (B, G, 32)
        return np.concatenate([turned, self.encode_codes(values)], axis=2)

    def decode(self, packed: NDArray[np.uint8]) -> tuple[Array, Array]:
        """The inverse of `encode`."""
        scales = np.ascontiguousarray(packed[:, :, :SCALES]).view("<f2").transpose(0, 2, 1)
        return self.decode_codes(packed[:, :, SCALES:]), scales

    def quantise(self, weight: Array, scales: Array | None = None, *, search: bool = True) -> Codes:
        """Round to nearest, every weight stored."""
        x, (rows, cols) = self._groups(weight), weight.shape
        chosen = self._given(scales, rows, cols) if scales is not None else self._fit(x, search)
        codes = self.grid.round(x, chosen).astype(np.int8)
        return self._codes(codes, chosen, rows, cols)

    def _groups(self, weight: Array) -> NDArray[np.float32]:
        """(rows, cols) -> (rows * groups, group) float32, padded with zeros."""
        x = pad(checked(weight, self.name).astype(np.float32), 1, self.group)
        return x.reshape(len(x) * (x.shape[1] // self.group), self.group)

    def _fit(self, x: NDArray[np.float32], search: bool) -> NDArray[np.float32]:
        return fit(x, self.grid, search=search, who=self.name)

    def _given(self, scales: Array, rows: int, cols: int) -> NDArray[np.float32]:
        expected = (rows, -(-cols // self.group))
        if scales.shape != expected:
            raise CheckpointError(f"scales of shape {scales.shape}", who=self.name, fix=f"give shape {expected}")
        return half_scales(scales, self.name).astype(np.float32).reshape(-1)

    def _codes(self, codes: NDArray[np.int8], scales: NDArray[np.float32], rows: int, cols: int) -> Codes:
        groups = -(-cols // self.group)
        values = codes.reshape(rows, groups * self.group)[:, :cols]
        return Codes(values, half_scales(scales.reshape(rows, groups), self.name), self.group)


@frozen(kw_only=True)
class Integer(Scaled):
    """Integers of 8, 4 or 2 bits in the vectors of `fields`: 4, 8 or 16 columns a vector."""

    def __attrs_post_init__(self) -> None:
        attrs.validators.in_((2, 4, 8))(self, attrs.fields(Grid).bits, self.grid.bits)

    @property
    def code_bytes(self) -> int:
        """A vector for every 32 / bits columns."""
        return self.group * self.grid.bits // 32 * VECTOR

    def encode_codes(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """Code - low, in bit fields."""
        packed = pack_fields(self.grid.stored(codes, self.name), self.grid.bits)
        return packed.reshape(*packed.shape[:2], self.code_bytes)

    def decode_codes(self, packed: NDArray[np.uint8]) -> NDArray[np.int8]:
        """The inverse of `encode_codes`."""
        vectors = packed.reshape(*packed.shape[:2], self.code_bytes // VECTOR, VECTOR)
        return self.grid.codes(unpack_fields(vectors, self.grid.bits))
