"""Adapters in int8: one scale for A and one for B of each layer, shared by all adapters of a base, the widest's.

So a graph that takes A and B as inputs gets other codes for another adapter, and never other scales. A saved one is
`adapter_config.json` as it was and `adapter_int8.safetensors`, of each layer `NAME.lora_A.codes` (rank, in) and
`NAME.lora_B.codes` (out, rank) in int8, `NAME.lora_A.scale` and `NAME.lora_B.scale`, one float32 each. peft reads no
such file. Rounded is to the nearest, so no number moves by more than half a scale.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from andes_adapters.reading import CONFIG, INT8, read_adapter, weights_file
from andes_sdk.errors import ConfigError
from andes_sdk.files import appearing
from andes_sdk.types import LowRank

if TYPE_CHECKING:
    from torch import nn

    from andes_adapters.registry import Registry
    from andes_sdk.types import Adapter

HIGH = 127
Widest = Mapping[str, tuple[float, float]]
"""Layer -> largest magnitude of A and of B that the codes reach."""


def widest(adapters: Iterable[Adapter]) -> dict[str, tuple[float, float]]:
    """Per layer the largest magnitudes over several adapters: what integers of all of them share a scale of.

    Of one that is int8 already it is how far its scales reach.
    """
    found: dict[str, tuple[float, float]] = {}
    for adapter in adapters:
        for name, low in adapter.layers.items():
            a, b = (_reach(*part) for part in ((low.a, low.a_scale), (low.b, low.b_scale)))
            before = found.get(name, (0.0, 0.0))
            found[name] = (max(a, before[0]), max(b, before[1]))
    return found


def _reach(matrix: Tensor, scale: Tensor | None) -> float:
    if not matrix.any():  # codes of zero alone say nothing of a scale
        return 0.0
    return float(matrix.abs().max()) if scale is None else HIGH * float(scale.max())


def as_int8(adapter: Adapter, ranges: Widest) -> Adapter:
    """The same with int8 matrices: one scale for each of A and B of a layer, that of `widest`.

    Raises:
        ConfigError: a matrix beyond its range, or one that is int8 with another scale and not zero.
    """
    layers = {}
    for name, low in adapter.layers.items():
        parts = ((low.a, low.a_scale), (low.b, low.b_scale))
        (a, a_scale), (b, b_scale) = (
            _rounded(matrix, scale, most, f"{adapter.name}: {name}")
            for (matrix, scale), most in zip(parts, ranges.get(name, (0.0, 0.0)), strict=True)
        )
        layers[name] = LowRank(a=a, b=b, scale=low.scale, a_scale=a_scale, b_scale=b_scale)
    return evolve(adapter, layers=layers)


def _rounded(matrix: Tensor, own: Tensor | None, most: float, who: str) -> tuple[Tensor, Tensor]:
    scale = most / HIGH or 1.0
    if own is not None:
        if not matrix.any():
            return matrix, torch.full_like(own, scale)
        if not torch.allclose(own, torch.full_like(own, scale), rtol=1e-6, atol=0.0):
            why = f"it is int8 with a scale of {float(own.max()):g}, the widest of all asks for {scale:g}"
            fix = "write all of them again from their floats: andes adapters int8"
            raise ConfigError("cannot share a scale", who=who, why=why, fix=fix)
        return matrix, own
    if float(matrix.abs().max()) > most * (1 + 1e-6):
        fix = "take the widest ranges over all adapters"
        raise ConfigError("a matrix is beyond its range", who=who, why=f"largest {most:g}", fix=fix)
    return torch.round(matrix / scale).to(torch.int8), torch.full((len(matrix),), scale)


def save_int8(adapter: Adapter, source: Path, folder: Path) -> None:
    """Write an int8 adapter with one scale per matrix; configuration and base are those of the folder it came from."""
    tensors: dict[str, Tensor] = {}
    for name, low in adapter.layers.items():
        for part, matrix, scale in (("A", low.a, low.a_scale), ("B", low.b, low.b_scale)):
            assert scale is not None
            tensors[f"{name}.lora_{part}.codes"] = matrix.contiguous()
            tensors[f"{name}.lora_{part}.scale"] = scale[:1].float().clone()
    with safe_open(weights_file(source), "pt") as file:
        metadata = {**(file.metadata() or {}), "format": "pt"}
    save_file(tensors, folder / INT8, metadata)
    shutil.copyfile(source / CONFIG, folder / CONFIG)


def write_int8(registry: Registry, out: str | Path, language_model: nn.Module) -> Registry:
    """Write all adapters of a registry as int8 -> the registry of that folder, which is made anew.

    Args:
        out: a folder that is not there yet. Beside a copy of the base, as BASE.adapters, it is that base's registry.

    Raises:
        ConfigError: the folder is there, or there are no adapters. CheckpointError: files that were changed.
    """
    from andes_adapters.registry import Registry

    target = Path(out).expanduser().absolute()
    if target.exists():
        raise ConfigError(
            "there is such a folder or file", who=str(out), fix="give the name of a new one, or remove it"
        )
    entries = registry.entries()
    if not entries:
        raise ConfigError("there are no adapters", who=str(registry.folder), fix="add one: andes adapters add")
    read = {name: read_adapter(name, registry.verified(name), language_model) for name in entries}
    ranges = widest(read.values())
    with appearing(target) as temporary:
        made = Registry(base=registry.base, folder=temporary)
        written: dict[str, Any] = {}
        for name, adapter in read.items():
            (temporary / name).mkdir()
            save_int8(as_int8(adapter, ranges), registry.folder / name, temporary / name)
            written[name] = made.entry(name, entries[name].rank, entries[name].contract, entries[name].base_checked)
        made.write(written)
    return Registry(base=registry.base, folder=target)
