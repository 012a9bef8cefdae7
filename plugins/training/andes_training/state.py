"""Restartable training state: safetensors and JSON in a folder that appears whole or not at all.

Tensors lie whole under their parameters' names, whatever the number of processes that wrote them, so a run may go on
with another number. One file holds up to `SHARD` bytes; no process ever holds more than that beside its own share.
There is no random state: the loop seeds the generator anew before each step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from andes_sdk.errors import CheckpointError, TrainingError
from andes_sdk.files import appearing
from andes_sdk.reading import parse_json
from andes_sdk.types import Position, StatefulStage

SHARD = 4 << 30
"""Bytes of one file."""
INDEX = "index.json"
FILE = re.compile(r"state-\d+\.safetensors")
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What AdamW keeps of a parameter."""
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


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


@frozen(kw_only=True)
class Saved:
    """What a state says of itself, beside its tensors.

    Attributes:
        position: where it stands.
        recipe: `Recipe.facts()` of the run that wrote it. data: `fingerprints` of the stage's data then.
        untold: figures of the last step where a validation was to follow before it is told; empty otherwise.
    """

    position: Position
    recipe: Mapping[str, Any]
    data: Mapping[str, str] = field(factory=dict)
    untold: Mapping[str, float] = field(factory=dict)


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into our error; what is written appears whole, or not at all."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointError) as error:
        raise TrainingError(
            "cannot be saved",
            who=str(path),
            why=f"{type(error).__name__}: {error}",
            fix="make room, or look at the folder's permissions; the same command goes on from the last state",
        ) from error


def save_state(
    folder: Path,
    learner: Learner,
    saved: Saved,
    *,
    keep: int = 2,
    spare: Collection[str] = (),
    write: bool = True,
) -> str:
    """Write `folder/state-<stage>-<step>` atomically and delete all but the newest `keep` -> its name.

    Args:
        spare: names of states that stay in any case.
        write: False in every process but one; all of them must call.

    Raises:
        TrainingError: it cannot be written; the states before stay.
    """
    target = folder / state_name(saved.position)
    if not write:
        for _, tensor in learner.tensors():
            whole(tensor)
        return target.name
    with saving(target):
        with appearing(target) as temporary:
            index = _write_shards(temporary, learner)
            _write_json(temporary / INDEX, index)
            sums = {name: _checksum(temporary / name) for name in sorted({INDEX, *index.values()})}
            _write_json(temporary / "position.json", {**asdict(saved), "sha256": sums})
        drop_states(folder, keep, spare)
    return target.name


def drop_leftovers(folder: Path) -> None:
    """Delete what a run that was killed while it wrote a state has left; only for the one that holds the folder."""
    for left in folder.glob(".state-*"):
        shutil.rmtree(left, ignore_errors=True)


def state_name(position: Position) -> str:
    """Folder of the state at a position, within the run's."""
    return f"state-{position.stage:02d}-{position.step:08d}"


def drop_states(folder: Path, keep: int, spare: Collection[str]) -> None:
    """Delete all but the newest `keep` states and those named in `spare`."""
    for old in states(folder)[:-keep]:
        if old.name not in spare:
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


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def states(folder: Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    return sorted(p for p in folder.glob("state-*") if (p / "position.json").is_file())


def read_saved(path: Path) -> Saved:
    """What a saved state says of itself.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        data: Any = parse_json((path / "position.json").read_text(encoding="utf-8"))
        position = Position(**data["position"])
        untold = data.get("untold", {})
        saved = Saved(position=position, recipe=data["recipe"], data=data["data"], untold=untold)
        numbers = asdict(saved.position)
        if wrong := {k: v for k, v in numbers.items() if type(v) is not int or v < 0}:
            raise ValueError(f"it stands at {wrong}")
        if not all(isinstance(one, dict) for one in (saved.recipe, saved.data, untold)):
            raise ValueError("the recipe, the data or the figures are no object")
        if not all(type(value) in (int, float) for value in untold.values()):
            raise ValueError("its figures are no numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            "the saved state is damaged", who=str(path), why=str(error), fix="delete it to use the one before"
        ) from None
    return saved


@torch.no_grad()
def load_state(path: Path, learner: Learner) -> None:
    """Put weights, buffers, optimizer and average back, to the bit; each process reads the state and keeps its share.

    Raises:
        TrainingError: a file is damaged, or a tensor is missing or of another shape or type. Nothing has changed then.
    """
    try:
        tensors = _Tensors(path)
        found = list(_expected(tensors, learner))
        for _, key, like in found:
            tensors.fits(key, like)
        for target, key, like in found:
            target(placed(tensors.read(key), like))
        if learner.stage is not None:
            own = [key for key in tensors.index if key.startswith("stage.")]
            learner.stage.load_state({key.removeprefix("stage."): tensors.read(key) for key in own})
    except Exception as error:
        raise TrainingError(
            "the saved state cannot be restored", who=str(path), why=str(error), fix="delete it to use the one before"
        ) from error


class _Tensors:
    """The tensors of a saved state, by name."""

    def __init__(self, path: Path) -> None:
        sums = parse_json((path / "position.json").read_text(encoding="utf-8"))["sha256"]
        if wrong := [name for name in sums if name != INDEX and not FILE.fullmatch(name)]:
            raise ValueError(f"{wrong[0]!r} is no file of a state")
        if changed := [name for name, sum_ in sums.items() if _checksum(path / name) != sum_]:
            raise ValueError(f"{', '.join(changed)}: not as written, the checksums differ")
        self.index: dict[str, str] = parse_json((path / INDEX).read_text(encoding="utf-8"))
        if wrong := sorted(set(self.index.values()) - set(sums)):
            raise ValueError(f"{wrong[0]!r} is no file of this state")
        self._files = {name: safe_open(path / name, framework="pt") for name in sums if name != INDEX}

    def read(self, key: str) -> Tensor:
        return self._files[self.index[key]].get_tensor(key)  # type: ignore[no-any-return]

    def fits(self, key: str, like: Tensor) -> None:
        """Raise ValueError unless it is there, in the shape and type of `like`."""
        if key not in self.index:
            raise ValueError(f"{key} is missing")
        head = self._files[self.index[key]].get_slice(key)
        shape, kind = tuple(head.get_shape()), head.get_dtype()
        wanted = _DTYPES.get(like.dtype, kind)
        if shape != tuple(like.shape) or kind != wanted:
            raise ValueError(f"{key} is {kind} {list(shape)}, not {wanted} {list(like.shape)}")


Restored = tuple[Callable[[Tensor], Any], str, Tensor]
"""What takes a tensor, its name in the state, and a tensor of its shape and type."""


def _expected(tensors: _Tensors, learner: Learner) -> Iterator[Restored]:
    """Everything that a learner needs of a state, the stage's own tensors left out."""
    learnt = {p for group in learner.optimizer.param_groups for p in group["params"]}
    for name, parameter in learner.model.named_parameters():
        yield parameter.copy_, f"weight.{name}", parameter
        # a parameter that had no gradient yet has no moments
        if parameter in learnt and any(f"optimizer.{kind}.{name}" in tensors.index for kind in MOMENTS):
            own = learner.optimizer.state[parameter]
            for kind in MOMENTS:
                like = torch.zeros((), device=parameter.device) if kind == "step" else parameter
                yield partial(own.__setitem__, kind), f"optimizer.{kind}.{name}", like
        if name in learner.average:
            yield learner.average[name].copy_, f"average.{name}", learner.average[name]
    for name, buffer in buffers(learner.model):
        yield buffer.copy_, f"buffer.{name}", buffer
