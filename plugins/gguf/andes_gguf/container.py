"""The GGUF container: metadata and tensors of a file, every length checked before it is trusted.

Versions 2 and 3, little-endian. The package `gguf` knows the tensor types and writes; its reader makes an array object
of every string, which takes seconds for a vocabulary, and follows damaged lengths for ever. Specification:
github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError
from andes_sdk.files import at_home, regular

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Value type -> code of `struct`."""
_STRING, _ARRAY = 8, 9
_DEPTH = 4
"""Arrays within arrays that are followed."""
_DIMENSIONS = 4
FETCH = "fetch the file again"


@frozen(kw_only=True)
class Stored:
    """One tensor. `shape` is torch's: rows first. `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    nbytes: int


@frozen(eq=False)
class GgufFile:
    """An opened file; weights stay on disk until `array` reads them."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor, dequantised to float32.

        Raises:
            CheckpointError: a type that the installed `gguf` cannot dequantise, or a file that was cut.
        """
        stored = self.tensors[name]
        raw = np.fromfile(self.path, np.uint8, stored.nbytes, offset=stored.offset)  # a map would be cut with its file
        if len(raw) != stored.nbytes:
            raise CheckpointError("was changed while it was opened", who=str(self.path), fix="open it again")
        rows = stored.shape[:-1]
        try:
            numbers = gguf.quants.dequantize(raw.reshape(*rows, -1), stored.kind)
        except NotImplementedError as error:
            who = f"{self.path}: {name}"
            raise CheckpointError(f"the type {stored.kind.name} cannot be read", who=who, why=str(error)) from error
        return np.array(numbers, np.float32).reshape(stored.shape)


def read(path: str | Path) -> GgufFile:
    """Open a file; read again only when it changed.

    Raises:
        CheckpointError: no GGUF file, a version or byte order that is not supported, truncated or damaged.
    """
    path = at_home(path)
    try:
        stat = regular(path).stat()
        return _read(path.absolute(), stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix="check the path") from None


@functools.lru_cache(maxsize=2)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    if size < 24:
        raise CheckpointError("is no GGUF file", who=str(path), why=f"it has {size} bytes", fix=FETCH)
    cursor = _Cursor(path, np.memmap(path, np.uint8, "r"))
    if bytes(cursor.take(4)) != b"GGUF":
        raise CheckpointError("is no GGUF file", who=str(path), why="it does not start with 'GGUF'", fix=FETCH)
    version = cursor.number("I")
    if version not in (2, 3):
        why = "big-endian files are not read" if version % 65536 == 0 else "versions 2 and 3 are read"
        raise CheckpointError(f"has version {version}", who=str(path), why=why, fix="convert the model again")
    count, pairs = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        if key in metadata:
            raise cursor.damaged(f"the key {key!r} stands twice")
        metadata[key] = cursor.value(cursor.number("I"))
    heads = [cursor.head() for _ in range(count)]
    return GgufFile(path, metadata, _placed(cursor, metadata, heads))


def _placed(
    cursor: _Cursor, metadata: Mapping[str, Any], heads: list[tuple[str, tuple[int, ...], int, int]]
) -> dict[str, Stored]:
    align = metadata.get("general.alignment", 32)
    if not isinstance(align, int) or align <= 0 or align & (align - 1):
        raise cursor.damaged(f"general.alignment is {align!r}")
    start = -(-cursor.at // align) * align
    tensors: dict[str, Stored] = {}
    for name, shape, number, offset in heads:
        try:
            kind = gguf.GGMLQuantizationType(number)
            block, size = gguf.GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise CheckpointError(f"has a tensor of the unknown type {number}", who=f"{cursor.path}: {name}") from None
        elements = int(np.prod(np.array(shape, object)))
        if name in tensors or elements <= 0 or shape[-1] % block:
            raise cursor.damaged(f"{name!r} stands twice, or its shape {shape} does not fit {kind.name}")
        stored = Stored(name=name, shape=shape, kind=kind, offset=start + offset, nbytes=elements // block * size)
        if offset % align or stored.offset + stored.nbytes > len(cursor.data):
            raise cursor.damaged(f"{name!r} ends at byte {stored.offset + stored.nbytes} of {len(cursor.data)}")
        tensors[name] = stored
    return tensors


class _Cursor:
    """A place in the file that moves as things are read."""

    def __init__(self, path: Path, data: NDArray[np.uint8]) -> None:
        self.path, self.data, self.at, self._view = path, data, 0, data.data

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError("is truncated or damaged", who=str(self.path), why=why, fix=FETCH)

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self._view):
            raise self.damaged(f"{count} bytes at byte {self.at} of {len(self._view)}")
        piece, self.at = self._view[self.at : end], end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY or depth == _DEPTH:
            raise self.damaged(f"a value of type {kind} at byte {self.at}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            kind_of = np.dtype("<" + _SCALARS[inner]) if _SCALARS[inner] != "?" else np.dtype(bool)
            return np.frombuffer(self.take(count * kind_of.itemsize), kind_of).tolist()
        if count > len(self._view) - self.at:  # each takes a byte at least
            raise self.damaged(f"an array of {count} at byte {self.at}")
        return [self.value(inner, depth + 1) for _ in range(count)]

    def head(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type, offset of a tensor."""
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise self.damaged(f"{name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")


__all__ = ["GgufFile", "Stored", "read"]
