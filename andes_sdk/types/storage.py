"""Stored weights: layouts of compressed matrices, packed files, and checkpoints in other people's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from andes_sdk.plan import Plan

    from .compression import Range
    from .model import Model


class Format(Protocol):
    """How a compressed matrix is laid out in bytes; a plugin's subclasses `andes_packing.formats.Format`."""

    name: str
    group: int

    def facts(self) -> dict[str, Any]:
        """The format as plain data."""

    def packed_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """(row blocks, bytes per row block)."""

    def dequantise(self, packed: NDArray[np.uint8], rows: int, cols: int) -> NDArray[np.float32]:
        """Packed bytes -> (rows, cols) float32."""


class Packed(Protocol):
    """A packed model: weights by name in a file that is mapped, not read."""

    @property
    def path(self) -> Path:
        """The file, absolute."""

    @property
    def plan(self) -> Plan:
        """The pipeline that the model belongs to."""

    @property
    def digest(self) -> str:
        """sha256 that names this file's content and no other."""

    @property
    def numbers(self) -> str:
        """sha256 over names, codes, scales and ranges: adapters name by it what they were trained on."""

    @property
    def ranges(self) -> Mapping[str, Range]:
        """How inputs of matrices are rounded, by name of the module."""

    @property
    def tensors(self) -> Mapping[str, Any]:
        """Shape, format, group and place of each tensor, tied ones once."""

    @property
    def formats(self) -> Mapping[str, Any]:
        """Formats in use, by name."""

    def stored_raw(self, name: str) -> bool:
        """Whether a tensor is stored as it is, without a format."""

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The mapped bytes of a matrix, (row blocks, bytes per row block), 64-byte aligned; nothing is copied.

        Raises:
            ConfigError: no such tensor, or it is stored raw.
        """

    def array(self, name: str) -> NDArray[Any]:
        """A tensor as numbers in its own shape: dequantised float32, or the mapped raw array.

        Raises:
            ConfigError: no such tensor. CheckpointError: bytes that no packing writes.
        """

    def rows(self, name: str, index: NDArray[np.int64]) -> NDArray[Any]:
        """(n,) rows of a matrix as numbers (n, columns); only their row blocks are read.

        Raises:
            ConfigError: no such tensor.
        """


class PublishedLayout(Protocol):
    """A published layout of checkpoints: its `config.json` to plugins, and modules back to such a file."""

    def plugin_items(self, config: Mapping[str, Any], *, who: str) -> Sequence[Mapping[str, Mapping[str, Any]]]:
        """Plugins with options that build the modules of a `config.json`.

        Raises:
            CheckpointError: parts that are absent or cannot be; `who` names the file.
        """

    def dtype(self, config: Mapping[str, Any], *, who: str) -> str:
        """Precision that it states."""

    def same_modules(self, config: Mapping[str, Any], plan: Plan) -> bool:
        """Whether it describes the modules of this plan."""

    def config_of(self, model: Model, plan: Plan, *, dtype: str) -> dict[str, Any] | None:
        """A `config.json` for these modules, or None where this layout cannot describe them."""

    def side_files(self, folder: Path) -> Sequence[Path]:
        """Files of a published checkpoint that hold no weights and travel with it, `config.json` among them."""
