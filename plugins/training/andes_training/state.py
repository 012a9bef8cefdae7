"""Restartable training state: safetensors and JSON in a folder that appears whole or not at all.

Tensors lie whole under their parameters' names, whatever the number of processes that wrote them, so a run may go on
with another number. One file holds up to `SHARD` bytes; no process ever holds more than that beside its own share.
There is no random state: the loop seeds the generator anew before each step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from andes_sdk.errors import TrainingError
from andes_sdk.files import appearing
from andes_sdk.reading import parse_json
from andes_sdk.types import Position, StatefulStage

SHARD = 4 << 30
"""Bytes of one file."""
INDEX = "index.json"


@frozen(eq=False)
class Learner:
    """What a state holds: a model, its optimizer, the moving average of its weights, and the stage's own state.

    Of several processes the first one's buffers are kept: what a forward pass writes into them must be made equal.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    stage: StatefulStage | None = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor under its name, in an order that all processes share."""
        for name, parameter in self.model.named_parameters():
            yield f"weight.{name}", parameter.detach()
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                yield f"optimizer.{key}.{name}", torch.as_tensor(value)
            if name in self.average:
                yield f"average.{name}", self.average[name]
        for name, buffer in buffers(self.model):
            yield f"buffer.{name}", buffer
        for name, tensor in sorted(self.stage.state().items()) if self.stage is not None else ():
            yield f"stage.{name}", tensor


def buffers(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Persistent buffers, such as ranges of activations that a forward pass updates, by name; each tensor once."""
    fleeting = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for name, buffer in model.named_buffers():
        if name not in fleeting:
            yield name, buffer


def whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is divided among processes; every process must call this at the same point."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, divided as that is."""
    value = value.to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def save_state(
    folder: Path, learner: Learner, position: Position, digest: str, *, keep: int = 2, write: bool = True
) -> None:
    """Write `folder/state-<stage>-<step>` atomically and delete all but the newest `keep`.

    Args:
        write: False in every process but one; all of them must call.
    """
    target = folder / f"state-{position.stage:02d}-{position.step:08d}"
    if not write:
        for _, tensor in learner.tensors():
            whole(tensor)
        return
    for left in folder.glob(".state-*"):  # by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    with appearing(target) as temporary:
        index = _write_shards(temporary, learner)
        _write_json(temporary / INDEX, index)
        _write_json(temporary / "position.json", {"position": asdict(position), "recipe": digest})
    for old in states(folder)[:-keep]:
        shutil.rmtree(old)


def _write_shards(folder: Path, learner: Learner) -> dict[str, str]:
    """Tensors to files -> name of tensor to name of file."""
    index: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    files = 0

    def flush() -> None:
        nonlocal files
        path = folder / f"state-{files:05d}.safetensors"
        save_file(held, path)
        _sync(path)
        index.update(dict.fromkeys(held, path.name))
        held.clear()
        files += 1

    for name, tensor in learner.tensors():
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > SHARD:
            flush()
        held[name] = whole(tensor).contiguous()
    flush()
    return index


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def states(folder: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    return sorted(p for p in folder.glob("state-*") if (p / "position.json").is_file())


def read_position(path: Path, digest: str) -> Position:
    """Where a saved state stands.

    Raises:
        TrainingError: the state is damaged, or was made by another recipe.
    """
    try:
        data: Any = parse_json((path / "position.json").read_text(encoding="utf-8"))
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


@torch.no_grad()
def load_state(path: Path, learner: Learner) -> None:
    """Put weights, buffers, optimizer and average back, to the bit; each process reads the state and keeps its share.

    Raises:
        TrainingError: a file is damaged or does not fit the model.
    """
    try:
        index = parse_json((path / INDEX).read_text(encoding="utf-8"))
        files = {name: safe_open(path / name, framework="pt") for name in set(index.values())}
        optimizer: dict[str, list[str]] = {}
        for key in index:
            if key.startswith("optimizer."):
                _, kind, name = key.split(".", 2)
                optimizer.setdefault(name, []).append(kind)

        def read(key: str, like: Tensor) -> Tensor:
            value = files[index[key]].get_tensor(key)
            return placed(value, like) if value.shape == like.shape else value.to(like.device)

        for name, parameter in learner.model.named_parameters():
            parameter.copy_(read(f"weight.{name}", parameter))
            if name in optimizer:
                learner.optimizer.state[parameter] = {
                    kind: read(f"optimizer.{kind}.{name}", parameter) for kind in optimizer[name]
                }
            if name in learner.average:
                learner.average[name].copy_(read(f"average.{name}", parameter))
        for name, buffer in buffers(learner.model):
            buffer.copy_(files[index[f"buffer.{name}"]].get_tensor(f"buffer.{name}"))
        if learner.stage is not None:
            own = [key for key in index if key.startswith("stage.")]
            learner.stage.load_state({key.removeprefix("stage."): files[index[key]].get_tensor(key) for key in own})
    except Exception as error:
        raise TrainingError(
            "the saved state cannot be restored", who=str(path), why=str(error), fix="delete it to use the one before"
        ) from error
