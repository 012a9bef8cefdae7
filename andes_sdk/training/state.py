"""Restartable training state: safetensors and JSON in a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors.torch import load_file, save_file

from andes_sdk.errors import TrainingError


@frozen(kw_only=True)
class Position:
    """Where a run stands: stage, optimizer steps done in it, epoch and the next sample of its order."""

    stage: int = 0
    step: int = 0
    epoch: int = 0
    offset: int = 0


def save_state(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    digest: str,
    keep: int = 2,
) -> Path:
    """Write `folder/state-<stage>-<step>` atomically and delete all but the newest `keep`."""
    target = folder / f"state-{position.stage:02d}-{position.step:08d}"
    temporary = folder / f".{target.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {f"weight.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    names = {id(p): n for n, p in model.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"optimizer.{key}.{names[id(parameter)]}"] = torch.as_tensor(value).contiguous()
    tensors["rng.cpu"] = torch.get_rng_state()
    save_file(tensors, temporary / "state.safetensors")
    text = json.dumps({"position": _as_dict(position), "recipe": digest})
    (temporary / "position.json").write_text(text, encoding="utf-8")
    for name in ("state.safetensors", "position.json"):
        with open(temporary / name, "rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for old in states(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _as_dict(position: Position) -> dict[str, int]:
    return {"stage": position.stage, "step": position.step, "epoch": position.epoch, "offset": position.offset}


def states(folder: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    return sorted(p for p in folder.glob("state-*") if (p / "position.json").is_file())


def read_position(path: Path, digest: str) -> Position:
    """Where a saved state stands.

    Raises:
        TrainingError: the state is damaged, or was made by another recipe.
    """
    try:
        data: Any = json.loads((path / "position.json").read_text(encoding="utf-8"))
        position, recipe = Position(**data["position"]), data["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            "the saved state is damaged", who=str(path), why=str(error), fix="delete it to use the one before"
        ) from None
    if recipe != digest:
        raise TrainingError(
            "the saved state was made by another recipe",
            who=str(path),
            fix="restore the recipe, or start anew with another --out folder",
        )
    return position


def load_state(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimizer and random state back, to the bit.

    Raises:
        TrainingError: the file is damaged or does not fit the model.
    """
    try:
        tensors = load_file(path / "state.safetensors")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                keys = [k for k in ("step", "exp_avg", "exp_avg_sq") if f"optimizer.{k}.{name}" in tensors]
                if keys:
                    optimizer.state[parameter] = {
                        k: tensors[f"optimizer.{k}.{name}"].to(parameter.device) for k in keys
                    }
        torch.set_rng_state(tensors["rng.cpu"])
    except Exception as error:
        raise TrainingError(
            "the saved state cannot be restored", who=str(path), why=str(error), fix="delete it to use the one before"
        ) from error
