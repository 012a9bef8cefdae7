"""Weight files of a folder: which tensor lies where, from indexes and headers; all flaws are told at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen
from safetensors import SafetensorError, safe_open

from andes_sdk.errors import CheckpointError
from andes_sdk.files import regular
from andes_sdk.reading import parse_json

SAFETENSORS = "model.safetensors"
BIN = "pytorch_model.bin"
INDEX = ".index.json"
AGAIN = "fetch the checkpoint again"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Types of the safetensors format that are read."""


POINTER = b"version https://git-lfs"
"""How a file begins that stands for one which Git LFS keeps elsewhere."""


@frozen
class StoredTensor:
    """One stored tensor; `start` is its first byte in a safetensors file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int = 0


@define
class Weights:
    """What a folder's weight files hold.

    Attributes:
        entries: tensor name -> where it lies.
        problems: one sentence for each flaw.
        lost: names that cannot be read, already spoken of in `problems`.
        index: the metadata of the index file; None for a single file.
    """

    entries: dict[str, StoredTensor] = field(factory=dict)
    problems: list[str] = field(factory=list)
    lost: set[str] = field(factory=set)
    index: dict[str, Any] | None = None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file cannot be read, or is no JSON object.
    """
    try:
        data = parse_json(regular(path).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError("cannot be read as JSON", who=str(path), why=str(error), fix=AGAIN) from None
    if not isinstance(data, dict):
        raise CheckpointError("is no JSON object", who=str(path), fix=AGAIN)
    return data


def layout(folder: Path) -> tuple[list[str], dict[str, str] | None, dict[str, Any] | None]:
    """Weight files of a folder -> (names of the files, tensor -> file and metadata if there is an index).

    safetensors are preferred to `.bin`, an index to a single file.

    Raises:
        CheckpointError: there are none, a shard is absent, or the index is no index.
    """
    for single in (SAFETENSORS, BIN):
        index = folder / (single + INDEX)
        if index.is_file():
            mapping, metadata = _index(index)
            absent = [name for name in sorted(set(mapping.values())) if not (folder / name).is_file()]
            if absent:
                what, why = "the index names files that are absent", ", ".join(absent)
                raise CheckpointError(what, who=str(index), why=why, fix=AGAIN)
            return sorted(set(mapping.values())), mapping, metadata
        if (folder / single).is_file():
            return [single], None, None
    what = "no weights here"
    raise CheckpointError(what, who=str(folder), why=f"no {SAFETENSORS} or {BIN}, nor an index of either", fix=AGAIN)


def _index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    data = read_json(path)
    mapping, metadata = data.get("weight_map"), data.get("metadata", {})
    if not isinstance(mapping, dict) or not mapping or not isinstance(metadata, dict):
        raise CheckpointError("is no index of weights", who=str(path), why="it has no weight_map", fix=AGAIN)
    for name in mapping.values():
        # a shard lies beside its index: no path may lead out of the folder
        if not isinstance(name, str) or name in ("", ".", "..") or os.path.basename(name) != name or "\0" in name:
            raise CheckpointError("names a file outside its folder", who=str(path), why=repr(name), fix=AGAIN)
    return mapping, metadata


def scan(folder: Path) -> Weights:
    """Read the headers of all weight files; no weight is read.

    Raises:
        CheckpointError: there are no weight files, or their index cannot be used (`layout`).
    """
    names, mapping, metadata = layout(folder)
    weights = Weights(index=metadata)
    for name in names:
        expected = None if mapping is None else {tensor for tensor, file in mapping.items() if file == name}
        _scan_file(folder / name, expected, weights)
    return weights


def _scan_file(path: Path, expected: set[str] | None, weights: Weights) -> None:
    try:
        entries = _safetensors(path) if path.suffix == ".safetensors" else _bin(path)
    except _Damaged as error:
        weights.problems.append(f"{path.name}: {error}")
        weights.lost |= (expected or set()) | error.names
        weights.lost |= {"*"} if not expected and not error.names else set()
        return
    for name, entry in entries.items():
        if expected is not None and name not in expected:
            weights.problems.append(f"{name}: in {path.name}, but the index does not place it there")
            weights.lost.add(name)
        else:
            weights.entries[name] = entry
    for name in sorted((expected or set()) - set(entries)):
        weights.problems.append(f"{name}: the index places it in {path.name}, which does not hold it")
        weights.lost.add(name)


class _Damaged(Exception):
    """A weight file that cannot be read; `names` are the tensors it should hold, as far as known."""

    def __init__(self, reason: str, names: set[str] | None = None) -> None:
        super().__init__(reason)
        self.names = names or set()


def _safetensors(path: Path) -> dict[str, StoredTensor]:
    with open(path, "rb") as raw:
        if raw.read(len(POINTER)) == POINTER:
            raise _Damaged("is a pointer of Git LFS, not the file: run `git lfs pull`, or download it")
    try:
        with safe_open(path, framework="pt") as file:  # checks types, offsets without gaps, the size of the file
            names = set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        cut = _truncated(path)
        if cut:
            raise _Damaged(f"truncated, it ends inside or before {', '.join(sorted(cut))}", cut) from None
        raise _Damaged(f"cannot be read as safetensors ({error})") from None
    header, data = _header(path)
    if unknown := sorted(f"{n} ({header[n]['dtype']})" for n in names if header[n]["dtype"] not in DTYPES):
        raise _Damaged(f"types that are no plain weights: {', '.join(unknown)}", names)
    return {
        name: StoredTensor(path, tuple(h["shape"]), DTYPES[h["dtype"]], data + h["data_offsets"][0])
        for name, h in header.items()
        if name in names
    }


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data starts."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        return parse_json(file.read(size)), 8 + size


def _truncated(path: Path) -> set[str]:
    """Tensors of a readable header whose bytes are beyond the end of the file."""
    try:
        header, data = _header(path)
        end = path.stat().st_size
        return {n for n, h in header.items() if n != "__metadata__" and data + h["data_offsets"][1] > end}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return set()


def _load_bin(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a `.bin` file through torch's weights-only reader, which runs no code of the file."""
    try:
        if path.stat().st_size and _is_zip(path):
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:  # the format before torch 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _Damaged(f"torch's weights-only reader refuses it ({reason})") from None
    if not isinstance(tensors, Mapping):
        raise _Damaged(f"holds a {type(tensors).__name__}, not tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise _Damaged(f"{name!r} is a {type(tensor).__name__}, not a plain tensor")
    return tensors


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _bin(path: Path) -> dict[str, StoredTensor]:
    return {name: StoredTensor(path, tuple(t.shape), t.dtype) for name, t in _load_bin(path).items()}


def read_tensors(entries: Mapping[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor once, file by file, as memory of its own on the CPU (the file may change afterwards).

    Raises:
        CheckpointError: a file changed since its header was read.
    """
    for path in dict.fromkeys(entry.file for entry in entries.values()):
        here = {name: entry for name, entry in entries.items() if entry.file == path}
        try:
            if path.suffix == ".safetensors":
                with open(path, "rb", buffering=0) as file:
                    for name, entry in sorted(here.items(), key=lambda item: item[1].start):
                        yield name, _read(file, entry)
            else:
                tensors = _load_bin(path)
                for name in here:
                    yield name, tensors[name].clone(memory_format=torch.contiguous_format)
        except (OSError, _Damaged, KeyError) as error:
            raise CheckpointError("cannot be read", who=str(path), why=str(error), fix=AGAIN) from None


def _read(file: Any, entry: StoredTensor) -> torch.Tensor:
    # read, not mapped: a mapped file that is rewritten in place would change, or crash, a model in use
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    buffer: Any = memoryview(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"")  # type: ignore[arg-type]
    file.seek(entry.start)
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise OSError("the file ends before the tensor does")
        done += count
    return tensor
