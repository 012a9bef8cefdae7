"""What a format is: a grid of weights, and the bytes in which a kernel streams them.

A matrix has rows (output features) and columns (input features). 16 rows make a *row block*; a lane is a row inside it.
Rows are padded to whole row blocks and columns to whole groups, both with zeros. A packed matrix is an array
(row blocks, bytes): all bytes of a row block are contiguous, its groups follow one another along the columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import attrs
import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.numbers import half_scales
from andes_sdk.types import Codes

Array = NDArray[Any]

LANES = 16
"""Rows of a row block."""


@frozen(kw_only=True)
class Format(ABC):
    """How a matrix is laid out in bytes. A plugin's format subclasses this, `Integer` or `OneOfFour`.

    Attributes:
        name: as users and artefacts write it.
        group: columns that share a scale; columns are padded to a multiple of it.
    """

    name: str
    group: int = field(validator=attrs.validators.ge(1))

    # ------------------------------------------------------------ what a format must say

    @property
    @abstractmethod
    def group_bytes(self) -> int:
        """Bytes of one group of one row block, scales included."""

    @abstractmethod
    def quantise(self, weight: Array, scales: Array | None = None, *, search: bool = True) -> Codes:
        """Round (rows, cols) floats to the nearest codes.

        Args:
            scales: (rows, groups) to use; None chooses them from the weights.
            search: choose the scales by squared error; without it by the largest (or mean) magnitude.

        Raises:
            CheckpointError: numbers that are not finite, or too large for a float16 scale.
        """

    @abstractmethod
    def encode(self, values: Array, scales: Array) -> NDArray[np.uint8]:
        """Values (B, 16, G, group) and scales (B, 16, G) -> bytes (B, G, group_bytes).

        Raises:
            CheckpointError: a value that is not on the grid.
        """

    @abstractmethod
    def decode(self, packed: NDArray[np.uint8]) -> tuple[Array, Array]:
        """The inverse of `encode`; scales (B, 16, 0) for a format without them."""

    # ------------------------------------------------------------ what follows from it

    def facts(self) -> dict[str, Any]:
        """The format as plain data; an artefact is refused where the installed format has other facts."""
        return {"layout": type(self).__name__, "group": self.group, "group_bytes": self.group_bytes}

    @property
    def bpw(self) -> float:
        """Bits per weight of a matrix that needs no padding."""
        return self.group_bytes * 8 / (LANES * self.group)

    def packed_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """(row blocks, bytes per row block)."""
        return -(-rows // LANES), -(-cols // self.group) * self.group_bytes

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes on disk, padding included."""
        blocks, size = self.packed_shape(rows, cols)
        return blocks * size

    def memory_nbytes(self, rows: int, cols: int) -> int:
        """Bytes in memory; packed weights are mapped as they lie on disk, unless a format says otherwise."""
        return self.nbytes(rows, cols)

    def type_bpw(self, rows: int, cols: int, *, memory: bool = False) -> float:
        """Type BPW of one matrix: bits of payload, scales, indices and padding per weight; 0 for an empty one."""
        size = self.memory_nbytes(rows, cols) if memory else self.nbytes(rows, cols)
        return size * 8 / (rows * cols) if rows * cols else 0.0

    def pack(self, codes: Codes) -> NDArray[np.uint8]:
        """Codes -> (row blocks, bytes per row block).

        Raises:
            CheckpointError: values or scales that this format cannot hold.
        """
        rows, cols = codes.values.shape
        blocks, size = self.packed_shape(rows, cols)
        groups = -(-cols // self.group)
        values = pad(pad(codes.values, 1, self.group), 0, LANES).reshape(blocks, LANES, groups, self.group)
        expected = codes.scales.shape[1] and groups
        if codes.group != self.group or codes.scales.shape != (rows, expected):
            raise CheckpointError(
                f"codes of {cols} columns with scales {codes.scales.shape} for every {codes.group} columns",
                who=self.name,
                fix=f"give scales of shape {(rows, groups)}, one for every {self.group} columns",
            )
        scales = pad(half_scales(codes.scales, self.name), 0, LANES).reshape(blocks, LANES, expected)
        return self.encode(values, scales).reshape(blocks, size)

    def unpack(self, packed: NDArray[np.uint8], rows: int, cols: int) -> Codes:
        """The inverse of `pack`.

        Raises:
            CheckpointError: the bytes are not those of a (rows, cols) matrix.
        """
        blocks, size = self.packed_shape(rows, cols)
        if packed.shape != (blocks, size):
            raise CheckpointError(
                f"{packed.shape} bytes for {rows} x {cols} weights", who=self.name, why=f"expected {(blocks, size)}"
            )
        groups = -(-cols // self.group)
        values, scales = self.decode(packed.reshape(blocks, groups, self.group_bytes))
        values = values.reshape(blocks * LANES, groups * self.group)[:rows, :cols]
        return Codes(values, scales.reshape(blocks * LANES, scales.shape[2])[:rows], self.group)

    def dequantise(self, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
        """Packed bytes -> (rows, cols) float32: the reference for every kernel."""
        return self.unpack(packed, rows, cols).weights()


def pad(array: Array, axis: int, multiple: int) -> Array:
    """Zeros at the end of an axis, up to a multiple; the array itself where none are needed."""
    short = -array.shape[axis] % multiple
    if not short:
        return array
    widths = [(0, short if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths)


def checked(weight: Array, who: str) -> Array:
    """A matrix of finite floats, unchanged.

    Raises:
        CheckpointError: numbers that are not finite. ConfigError: no matrix.
    """
    if weight.ndim != 2:
        raise ConfigError(f"a weight of shape {weight.shape}", who=who, fix="give a matrix (rows, cols)")
    if not np.isfinite(weight).all():
        raise CheckpointError("weights that are not finite", who=who, fix="check the checkpoint")
    return weight
