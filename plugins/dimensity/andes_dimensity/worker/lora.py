"""LiteRT-LM's adapter files: a .tflite of tensors alone, their data behind it, padded to pages.

The runtime takes the number of the metadata's buffer for the rank. So `lora_rank` names no buffer that holds
something, and what andes_sdk says of the adapter stands in the description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 1 << 16


def write(path: Path, tensors: Mapping[str, np.ndarray], rank: int, said: Mapping[str, Any]) -> None:
    """Write float32 tensors, named as the graph's inputs."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def packed(offsets: list[int]) -> bytes:
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.name, graph.tensors, graph.inputs, graph.outputs, graph.operators = "lora_params", [], [], [], []
        model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
        model.description = json.dumps({"kind": "lora_params", **said}, sort_keys=True)
        for (name, array), offset in zip(tensors.items(), offsets, strict=True):
            tensor, buffer = schema.TensorT(), schema.BufferT()
            buffer.offset, buffer.size = offset, array.size * 4
            model.buffers.append(buffer)
            tensor.name, tensor.shape, tensor.type = name, list(array.shape), schema.TensorType.FLOAT32
            tensor.buffer = len(model.buffers) - 1
            graph.tensors.append(tensor)
        told = schema.MetadataT()
        told.name, told.buffer = "lora_rank", rank
        model.subgraphs, model.metadata = [graph], [told]
        builder = flatbuffers.Builder(PAGE)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def up(number: int, step: int) -> int:
        return -(-number // step) * step

    head, offsets = packed([1 << 20] * len(tensors)), []
    at = up(len(head), 64)
    for array in tensors.values():
        offsets.append(at)
        at = up(at + array.size * 4, 64)
    whole, final = bytearray(up(at, PAGE)), packed(offsets)
    if len(final) != len(head):
        raise ValueError("the head of the file grew")
    whole[: len(final)] = final
    for array, offset in zip(tensors.values(), offsets, strict=True):
        whole[offset : offset + array.size * 4] = np.ascontiguousarray(array, np.float32).tobytes()
    path.write_bytes(whole)


def written(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of `lora.safetensors` as `lora.tflite`."""
    from safetensors.numpy import load_file

    write(folder / "lora.tflite", load_file(folder / "lora.safetensors"), job["rank"], job["said"])
    return {"bytes": (folder / "lora.tflite").stat().st_size}
