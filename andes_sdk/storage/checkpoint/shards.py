"""A model's tensors into safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from andes_sdk.storage.checkpoint.files import INDEX, SAFETENSORS
from andes_sdk.storage.checkpoint.load import aliases

SHARD_BYTES = 4 * 1024**3


def stored_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is stored, a tied tensor once."""
    tied = aliases(model)
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in tied}


def _converted(tensor: torch.Tensor, dtype: str, convert: bool) -> torch.Tensor:
    wanted = getattr(torch, dtype) if convert and tensor.is_floating_point() else tensor.dtype
    out = tensor.to(device="cpu", dtype=wanted).contiguous()
    return out.clone() if out.untyped_storage().nbytes() != out.nbytes else out  # safetensors refuses shared memory


def shards(tensors: Mapping[str, torch.Tensor], dtype: str, convert: bool) -> dict[str, str]:
    """Tensor -> file, in order, no file much above `SHARD_BYTES`."""
    numbers: dict[str, int] = {}
    number, used = 1, 0
    for name, tensor in tensors.items():
        kind = getattr(torch, dtype) if convert and tensor.is_floating_point() else tensor.dtype
        size = tensor.numel() * kind.itemsize
        if used and used + size > SHARD_BYTES:
            number, used = number + 1, 0
        numbers[name], used = number, used + size
    if number == 1:
        return dict.fromkeys(tensors, SAFETENSORS)
    return {name: f"model-{index:05d}-of-{number:05d}.safetensors" for name, index in numbers.items()}


def write_weights(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    placed: Mapping[str, str],
    dtype: str,
    convert: bool,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the shards that `placed` names, one at a time in memory, and an index if there are several."""
    total = 0
    for file in dict.fromkeys(placed.values()):
        shard = {n: _converted(tensors[n], dtype, convert) for n, f in placed.items() if f == file}
        addresses = [t.data_ptr() for t in shard.values() if t.numel()]
        if len(set(addresses)) != len(addresses):  # a head that the published checkpoint stores beside its embedding
            shard = {n: t.clone() for n, t in shard.items()}
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors leaves it readable by its owner alone
        total += sum(t.nbytes for t in shard.values())
    if set(placed.values()) != {SAFETENSORS}:
        index = {"metadata": {**(metadata or {}), "total_size": total}, "weight_map": dict(placed)}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        (folder / (SAFETENSORS + INDEX)).write_text(text, encoding="utf-8")
