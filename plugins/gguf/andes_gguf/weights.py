"""Weights of a file into a model: names and shapes are verified first, then each tensor is dequantised in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from andes_sdk.errors import CheckpointError

from .architecture import FACTORS, restore, rotated_heads, stored_name
from .container import FETCH, GgufFile, read

SHOWN = 20
"""Problems spelled out in one error."""


def fill(model: Any, fields: Mapping[str, Any], path: str, device: torch.device) -> None:
    """Replace the parameters of a model on "meta" by those of a file, float32 on `device`.

    Raises:
        CheckpointError: naming every tensor that is missing, extra or mis-shaped.
    """
    file = read(path)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}  # a tied head once
    problems = differences(wanted, file)
    if problems:
        shown = problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
        why = "".join(f"\n  - {text}" for text in shown)
        raise CheckpointError("its tensors do not fit its metadata", who=path, why=why, fix=FETCH)
    modules = dict(model.named_modules())
    for name in wanted:
        array = file.array(str(stored_name(name)))
        if heads := rotated_heads(name, fields):
            array = restore(array, heads)
        owner, _, leaf = name.rpartition(".")
        modules[owner]._parameters[leaf] = nn.Parameter(torch.from_numpy(array).to(device))
    model.tie_weights()


def differences(wanted: Mapping[str, tuple[int, ...]], file: GgufFile) -> list[str]:
    """What keeps a file from filling parameters of these names and shapes."""
    problems, used = [], {FACTORS}
    for name, shape in wanted.items():
        stored = str(stored_name(name))
        used.add(stored)
        if stored not in file.tensors:
            problems.append(f"{stored}: missing")
        elif file.tensors[stored].shape != shape:
            problems.append(f"{stored}: has shape {list(file.tensors[stored].shape)}, not {list(shape)}")
    extra = [name for name in file.tensors if name not in used]
    return problems + [f"{name}: extra, this architecture has no such tensor" for name in extra]
