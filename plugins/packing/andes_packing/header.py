"""The header of an artefact: what lies where, checked as a whole before anything is read.

    64 bytes  magic, version, length and sha256 of the header
    header    JSON
    data      tensors and files, each at a multiple of 64 bytes

Offsets count from the start of the data, which itself lies at a multiple of 64.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from attrs import frozen

from andes_packing.formats import Format
from andes_sdk.config import CONVERTER, reasons
from andes_sdk.errors import CheckpointError
from andes_sdk.files import confined, regular
from andes_sdk.numbers import range_problem
from andes_sdk.plan import Plan
from andes_sdk.reading import parse_json
from andes_sdk.types import Range

MAGIC = b"ANDESPAK"
VERSION = 1
ALIGN = 64
PREAMBLE = struct.Struct("<8sIIQ32s8x")
NO_DIGEST = "0" * 64
AGAIN = "pack it again, or fetch it again"


@frozen(kw_only=True)
class Place:
    """A run of bytes: offset from the start of the data, length, sha256."""

    offset: int
    nbytes: int
    sha256: str = NO_DIGEST


@frozen(kw_only=True)
class Entry(Place):
    """A tensor: its shape in the model, its format (or `raw:float32` …) and its group in reports."""

    shape: tuple[int, ...]
    format: str
    group: str

    @property
    def weights(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns that its format sees."""
        return matrix(self.shape)


def matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a tensor of two or more dimensions: (1, N, D) is N rows, a convolution has one per filter."""
    shape = list(shape)
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape[0], math.prod(shape[1:])


@frozen(kw_only=True)
class Header:
    """What an artefact says of itself.

    Attributes:
        plan: the pipeline that the model belongs to.
        formats: name -> facts of every format in use.
        tensors: by name, tied ones once.
        tied: further name -> name of the same tensor.
        files: the tokenizer's files by name.
        nbytes: of the data.
        numbers: sha256 over names, codes, scales and ranges: of what a compressor gave, or of all matrices where none
            did (`andes_sdk.numbers`).
        ranges: how inputs of matrices are rounded, by name of the module.
    """

    plan: Plan
    formats: Mapping[str, Mapping[str, object]]
    tensors: Mapping[str, Entry]
    tied: Mapping[str, str]
    files: Mapping[str, Place]
    nbytes: int
    numbers: str
    ranges: Mapping[str, Range]

    def to_bytes(self) -> bytes:
        """Preamble and JSON, padded to where the data starts."""
        body = json.dumps(CONVERTER.unstructure(self), ensure_ascii=False, separators=(",", ":")).encode()
        head = PREAMBLE.pack(MAGIC, VERSION, 0, len(body), hashlib.sha256(body).digest())
        return head + body + bytes(aligned(len(head) + len(body)) - len(head) - len(body))


def aligned(size: int) -> int:
    """The next multiple of `ALIGN`."""
    return -(-size // ALIGN) * ALIGN


@frozen
class Found:
    """A header as it was read, before formats are known: `start` is where the data starts, `size` the whole file's."""

    path: Path
    header: Header
    start: int
    size: int


def read_header(path: Path) -> Found:
    """Header of an artefact; no weight is read, and `check` must follow before any is.

    Raises:
        CheckpointError: this is no artefact, or its header is damaged.
    """
    body, size = _read(path)
    return Found(path, _structure(body, path), aligned(PREAMBLE.size + len(body)), size)


def is_artefact(path: Path) -> bool:
    """Whether a file starts as an artefact does."""
    try:
        with open(regular(path), "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def check(found: Found, formats: Mapping[str, Format]) -> None:
    """Refuse an artefact that cannot be used with these formats.

    Raises:
        CheckpointError: with every reason.
    """
    path, header, start, size = found.path, found.header, found.start, found.size
    problems = list(_problems(header, formats))
    if size != start + header.nbytes:
        kind = "truncated" if size < start + header.nbytes else "longer than it says"
        problems.insert(0, f"it is {kind}: {size} bytes instead of {start + header.nbytes}")
    if problems:
        shown = problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])
        why = "".join(f"\n  - {text}" for text in shown)
        raise CheckpointError("this artefact cannot be used", who=str(path), why=why, fix=AGAIN)


def _read(path: Path) -> tuple[bytes, int]:
    try:
        with open(regular(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _body(file, size, path), size
    except OSError as error:
        raise CheckpointError("cannot be read", who=str(path), why=str(error), fix="check the path") from None


def _body(file: BinaryIO, size: int, path: Path) -> bytes:
    head = file.read(PREAMBLE.size)
    if len(head) < PREAMBLE.size or not head.startswith(MAGIC):
        raise CheckpointError("is no artefact", who=str(path), why=f"it does not start with {MAGIC!r}", fix="check it")
    _, version, _, length, digest = PREAMBLE.unpack(head)
    if version > VERSION:
        why = f"version {version}, this andes_sdk reads {VERSION}"
        raise CheckpointError("is of a later version", who=str(path), why=why, fix="upgrade andes-sdk")
    if length > size - PREAMBLE.size:
        raise CheckpointError("is truncated", who=str(path), why="its header is not whole", fix=AGAIN)
    body = file.read(length)
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError("is damaged", who=str(path), why="the checksum of its header differs", fix=AGAIN)
    return body


def _structure(body: bytes, path: Path) -> Header:
    try:
        return CONVERTER.structure(parse_json(body), Header)
    except Exception as error:
        why = "; ".join(reasons(error, "header"))
    raise CheckpointError("has a header that is none", who=str(path), why=why, fix=AGAIN)


def _problems(header: Header, formats: Mapping[str, Format]) -> Iterator[str]:
    for name, facts in header.formats.items():
        if name not in formats:
            yield f"format {name!r} is not known here: install the plugin that brings it"
        elif json.loads(json.dumps(formats[name].facts())) != facts:
            yield f"format {name!r} was another one when this was packed"
    for name, entry in header.tensors.items():
        expected = _size(entry, header, formats)
        if expected is not None and expected != entry.nbytes:
            yield f"{name}: {entry.nbytes} bytes for shape {list(entry.shape)} in {entry.format}, not {expected}"
    for alias, name in header.tied.items():
        if alias in header.tensors or name not in header.tensors:
            yield f"{alias}: tied to {name!r}, which is not there, or there itself"
    for name in header.files:
        if not confined(name):
            yield f"file {name!r} would lie outside its folder"
    if not re.fullmatch("[0-9a-f]{64}", header.numbers):
        yield f"numbers are {header.numbers[:80]!r}, not a sha256"
    if len(header.ranges) > len(header.tensors):
        yield f"{len(header.ranges)} ranges for {len(header.tensors)} tensors"
    for name, one in header.ranges.items():
        if f"{name}.weight" not in header.tensors and f"{name}.weight" not in header.tied:
            yield f"range of {name!r}: there is no such matrix"
        elif why := range_problem(one):
            yield f"range of {name!r}: {why}"
    end = 0
    everything = [*header.tensors.items(), *header.files.items()]
    for name, place in sorted(everything, key=lambda item: item[1].offset):
        last = place.offset + place.nbytes
        if place.offset < end or place.offset % ALIGN or place.nbytes < 0 or last > header.nbytes:
            yield f"{name}: bytes {place.offset} to {last} overlap or lie outside"
        end = max(end, last)


def _size(entry: Entry, header: Header, formats: Mapping[str, Format]) -> int | None:
    """Bytes that an entry must have; None where its format cannot say (told elsewhere), -1 where nothing fits."""
    if any(n < 0 for n in entry.shape):
        return -1
    kind, _, dtype = entry.format.partition(":")
    if kind == "raw":
        return math.prod(entry.shape) * raw_dtype(dtype).itemsize if dtype in RAW_DTYPES else -1
    if len(entry.shape) < 2 or entry.format not in header.formats:
        return -1
    return formats[entry.format].nbytes(*entry.matrix) if entry.format in formats else None


RAW_DTYPES = ("float32", "int64", "int32", "int16", "int8", "uint8", "bool")


def raw_dtype(name: str) -> np.dtype[Any]:
    """Little-endian type of a raw tensor."""
    return np.dtype(name).newbyteorder("<")
