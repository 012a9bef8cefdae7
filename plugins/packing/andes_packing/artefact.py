"""One file per packed model: plan, formats, checksums, tokenizer, and weights that are mapped, not read."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from andes_packing.formats import LANES, Format, known
from andes_packing.formats.base import Array
from andes_packing.header import AGAIN, Entry, Found, Header, Place, check, raw_dtype, read_header
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import absolute, regular

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.plan import Plan
    from andes_sdk.types import Range

CHUNK_WEIGHTS = 1 << 18
"""Weights worked on at once, so that what is in between stays in the processor's cache."""


def row_chunk(cols: int) -> int:
    """Rows worked on at once, whole row blocks."""
    return max(LANES, CHUNK_WEIGHTS // max(cols, 1) // LANES * LANES)


class MappedFile:
    """A file that is mapped, kept open: it is what it was as long as its size and its time are.

    A file that another is renamed over lives on. One that is written anew in place does not: its weights would be other
    ones, or, where it was cut, touching them would end the process.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError: it cannot be opened."""
        self.path, self._handle = path, os.open(regular(path), os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._handle)
        self._was = self._now()

    def map(self) -> NDArray[np.uint8]:
        """Its bytes, read-only."""
        with os.fdopen(self._handle, "rb", closefd=False) as file:
            return np.memmap(file, np.uint8, mode="r")

    def check(self) -> None:
        """Raises CheckpointError: it was changed since it was opened."""
        if (now := self._now()) != self._was:
            why = f"it had {self._was[1]} bytes and has {now[1]}" if now[1] != self._was[1] else "it was written to"
            fix = "open it again; replace such a file by renaming another to its name (`mv`), not by writing it anew"
            raise CheckpointError("was changed while it was in use", who=str(self.path), why=why, fix=fix)

    def _now(self) -> tuple[int, int, int]:
        facts = os.fstat(self._handle)
        return facts.st_ino, facts.st_size, facts.st_mtime_ns


@frozen(eq=False, slots=False)
class Artefact:
    """A packed model, opened with `Artefact.open`. Weights stay in the file until they are touched.

    Attributes:
        path: the file, absolute.
        header: plan, formats, tensors, tied names, files.
        formats: those in use, by name.
        data: the mapped bytes after the header, read-only.
        file: what they are mapped from.
    """

    path: Path = field(converter=absolute)
    header: Header
    formats: Mapping[str, Format]
    data: NDArray[np.uint8]
    file: MappedFile

    @classmethod
    def open(cls, path: str | Path, *, formats: Iterable[Format] = (), verify: bool = False) -> Artefact:
        """Map an artefact.

        Header, sizes and offsets are always checked; checksums of the weights only by `verify`, since that reads them.

        Args:
            formats: of plugins.

        Raises:
            CheckpointError: damaged, truncated, of a later version, or in formats that are not those installed here.
        """
        return cls.of(read_header(Path(path)), formats=formats, verify=verify)

    @classmethod
    def of(cls, found: Found, *, formats: Iterable[Format] = (), verify: bool = False) -> Artefact:
        """Map an artefact whose header was read; as `open`."""
        available, header = known(formats), found.header
        check(found, available)
        try:
            file = MappedFile(found.path)
            # a map of nothing is an error to the operating system; the header is always something
            data = file.map()[found.start :]
        except (OSError, ValueError) as error:
            raise CheckpointError("cannot be read", who=str(found.path), why=str(error), fix="check the path") from None
        if len(data) != header.nbytes:
            raise CheckpointError("was changed while it was opened", who=str(found.path), fix="open it again")
        artefact = cls(found.path, header, {name: available[name] for name in header.formats}, data, file)
        if verify:
            artefact.verify()
        return artefact

    @property
    def plan(self) -> Plan:
        """The pipeline that the model belongs to."""
        return self.header.plan

    @property
    def tensors(self) -> Mapping[str, Entry]:
        """Tensors by name, tied ones once."""
        return self.header.tensors

    @property
    def numbers(self) -> str:
        """sha256 over names, codes, scales and ranges: adapters name by it what they were trained on."""
        return self.header.numbers

    @property
    def ranges(self) -> Mapping[str, Range]:
        """How inputs of matrices are rounded, by name of the module."""
        return self.header.ranges

    @cached_property
    def digest(self) -> str:
        """sha256 over the header, hence over all checksums: it names this artefact and no other."""
        return hashlib.sha256(self.header.to_bytes()).hexdigest()

    # ------------------------------------------------------------ reading

    def stored_raw(self, name: str) -> bool:
        """Whether a tensor is stored as it is, without a format."""
        return self._entry(name).format.startswith("raw:")

    def packed(self, name: str) -> NDArray[np.uint8]:
        """The mapped bytes of a matrix, (row blocks, bytes per row block), 64-byte aligned; nothing is copied.

        Raises:
            ConfigError: no such tensor, or it is stored raw. CheckpointError: the file was changed.
        """
        entry = self._entry(name)
        if self.stored_raw(name):
            raise ConfigError(f"is stored as {entry.format}", who=name, fix="read it with `array`")
        return self._bytes(entry).reshape(self.formats[entry.format].packed_shape(*entry.matrix))

    def array(self, name: str) -> Array:
        """A tensor as numbers in its own shape: dequantised float32, or the mapped raw array.

        Raises:
            ConfigError: no such tensor. CheckpointError: bytes that no packing writes, or the file was changed.
        """
        entry = self._entry(name)
        if entry.format.startswith("raw:"):
            return self._bytes(entry).view(raw_dtype(entry.format.partition(":")[2])).reshape(entry.shape)
        (rows, cols), form, packed = entry.matrix, self.formats[entry.format], self.packed(name)
        out = np.empty((rows, cols), np.float32)
        step = row_chunk(cols)
        for at in range(0, rows, step):
            end = min(at + step, rows)
            out[at:end] = form.dequantise(packed[at // LANES : -(-end // LANES)], end - at, cols)
        return out.reshape(entry.shape)

    def rows(self, name: str, index: NDArray[np.int64]) -> Array:
        """(n,) rows of a matrix as numbers (n, columns), such as embeddings; only their row blocks are read.

        Raises:
            ConfigError: no such tensor.
        """
        entry = self._entry(name)
        if entry.format.startswith("raw:"):
            return np.array(self.array(name)[index])
        blocks, where = np.unique(index // LANES, return_inverse=True)
        cols = entry.matrix[1]
        numbers = self.formats[entry.format].dequantise(self.packed(name)[blocks], len(blocks) * LANES, cols)
        found: Array = numbers[where * LANES + index % LANES]
        return found

    def dequantised_state(self) -> dict[str, Tensor]:
        """Every tensor of the model's state, float32, tied names too: the reference for backends that run packed."""
        import torch

        state = {name: torch.from_numpy(np.array(self.array(name))) for name in self.tensors}
        return state | {alias: state[name] for alias, name in self.header.tied.items()}

    @property
    def files(self) -> StoredFiles:
        """The tokenizer's files."""
        return StoredFiles(self.path, self.header.files, self.header.nbytes)

    def extract(self, folder: str | Path) -> list[Path]:
        """Write the tokenizer's files into an existing folder.

        Raises:
            CheckpointError: a file that differs from its checksum.
        """
        return self.files.copy(Path(folder))

    def verify(self) -> None:
        """Read everything and compare the checksums.

        Raises:
            CheckpointError: naming every tensor and file that differs.
        """
        places = {**self.header.tensors, **self.header.files}
        wrong = [n for n, p in places.items() if hashlib.sha256(self._bytes(p).data).hexdigest() != p.sha256]
        if wrong:
            shown = ", ".join(wrong[:20]) + (f" and {len(wrong) - 20} more" if len(wrong) > 20 else "")
            raise CheckpointError("is damaged", who=str(self.path), why=f"checksums differ: {shown}", fix=AGAIN)

    def _entry(self, name: str) -> Entry:
        name = self.header.tied.get(name, name)
        if name not in self.tensors:
            raise ConfigError("no such tensor", who=name, fix=f"see the tensors of {self.path.name}")
        return self.tensors[name]

    def _bytes(self, place: Place) -> NDArray[np.uint8]:
        self.file.check()
        return self.data[place.offset : place.offset + place.nbytes]


@frozen
class StoredFiles:
    """The files inside an artefact; an `andes_sdk.types.Files`.

    They are read from the file, not through its map, whose pages would count as this process's memory from then on.

    Attributes:
        path: absolute.
        nbytes: of the data, which ends the file.
    """

    path: Path = field(converter=absolute)
    places: Mapping[str, Place]
    nbytes: int

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def where(self, name: str = "") -> str:
        """The artefact, and which of its files."""
        return f"{self.path}: {name}" if name else str(self.path)

    def copy(self, folder: Path) -> list[Path]:
        """Write all files into an existing folder -> their paths. Raises CheckpointError as `read`."""
        written = []
        for name in self.places:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))
            written.append(path)
        return written

    def read(self, name: str) -> bytes:
        """Content of a file.

        Raises:
            CheckpointError: it is not there, cannot be read, or differs from its checksum.
        """
        if name not in self.places:
            raise CheckpointError("is not there", who=self.where(name), fix=AGAIN)
        place = self.places[name]
        try:
            with open(self.path, "rb") as file:
                file.seek(place.offset - self.nbytes, os.SEEK_END)
                content = file.read(place.nbytes)
        except OSError as error:
            raise CheckpointError(
                "cannot be read", who=self.where(name), why=str(error), fix="check the path"
            ) from error
        if hashlib.sha256(content).hexdigest() != place.sha256:
            raise CheckpointError("is damaged", who=self.where(name), why="its checksum differs", fix=AGAIN)
        return content
