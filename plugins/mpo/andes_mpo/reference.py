"""The reference of a preference loss: the model as it was when the stage began.

Stored: every answer is scored once before the first step, and the log-probabilities are kept in the run's folder under
a hash of the sample, so a run that goes on uses the same numbers to the bit. Online: they are computed with each batch,
by a frozen copy of the model, or by the model without its adapters where only adapters (peft) learn.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.data.bad import BadSample
from andes_training.packing import collate, pack
from andes_training.reading import in_order, stage_maker
from andes_training.state import saving
from attrs import define, field, frozen
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from andes_sdk.errors import TrainingError
from andes_sdk.files import appearing_file

if TYPE_CHECKING:
    from andes_training.data.samples import Sample
    from andes_training.packing import Batch, Row
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Media

Score = Callable[["VisionLanguageModel", "Batch"], tuple[Tensor, Tensor]]
"""A pack of P pairs -> (P, 2) log-probabilities, and something else."""

Pair = tuple[float, float]

SAVE_SECONDS = 30.0


def refuse_changing(run: StageRun, *, online: bool) -> None:
    """Refuse data options that a preference stage cannot keep.

    Raises:
        TrainingError: `questions`, which would split pairs; or changing pictures with a stored reference.
    """
    for source in run.recipe.data:
        if source.questions:
            raise TrainingError("questions would split pairs", who=str(source.path), fix="leave `questions` out")
        if not online and (source.flip or source.shift or source.rotate):
            why = "flip, shift and rotate change the pictures that the stored log-probabilities are of"
            fix = 'leave them out, or set the option reference = "online"'
            raise TrainingError("the pictures change", who=str(source.path), why=why, fix=fix)


@frozen(eq=False)
class StoredReference:
    """Log-probabilities by the content of a sample: its ids and the pixels of its pictures.

    Attributes:
        known: key -> log-probabilities of the chosen and the rejected answer.
        marks: kind ("image", or a modality's name) -> its placeholder.
        samples: to say which one is missing.
    """

    known: Mapping[bytes, Pair]
    marks: Mapping[str, int]
    samples: Sequence[Sample]

    @classmethod
    def of(cls, run: StageRun, score: Score) -> StoredReference:
        """Read what the run's folder holds, and compute the rest if the stage has not begun."""
        model = run.pipeline.model
        marks = {kind: model.tokenizer.placeholder(kind) for kind in model.kinds}
        path = run.out / f"reference-{run.index:02d}-{run.rank:03d}.safetensors"
        if run.position.step == 0:
            _compute(run, score, path, marks)
            _meet()
        known: dict[bytes, Pair] = {}
        for file in sorted(run.out.glob(f"reference-{run.index:02d}-[0-9]*.safetensors")):
            known |= _read(file).known
        return cls(known, marks, run.samples)

    def __call__(self, batch: Batch) -> Tensor:
        """(2P,) chosen and rejected in turn.

        Raises:
            TrainingError: a sample that was not there when the stage began.
        """
        keys = keys_of(batch, self.marks)
        for key, index in zip(keys, batch.extras["sample"].tolist(), strict=True):
            if key not in self.known:
                why = "the sample, or its preparation, has changed since the stage began, and the reference is gone"
                fix = "restore the data and the run's folder, or start anew in another folder"
                where = self.samples[index].where
                raise TrainingError("a reference log-probability is missing", who=where, why=why, fix=fix)
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float32).reshape(-1)


def keys_of(batch: Batch, marks: Mapping[str, int]) -> list[bytes]:
    """One SHA-256 per sample of a pack on the CPU, over its ids, its branches, its pixels and other media."""
    keys = []
    ids = batch.ids.split([segment.rows for segment in batch.attend.segments])
    items = {kind: _items(media) for kind, media in batch.media.items()}
    for part, segment in zip(ids, batch.attend.segments, strict=True):
        found = hashlib.sha256(repr((segment.prefix, segment.branches)).encode())
        found.update(part.contiguous().numpy().data)
        for kind, own in items.items():
            left = int((part == marks[kind]).sum())
            while left > 0:
                rows, data = next(own)
                found.update(data.contiguous().numpy().data)
                left -= rows
        keys.append(found.digest())
    return keys


def _items(media: Media) -> Iterator[tuple[int, Tensor]]:
    """Rows and data of each item."""
    yield from zip(media.rows, media.data.split([math.prod(size) for size in media.sizes]), strict=True)


def _digest(model: torch.nn.Module) -> str:
    """A hash of a model's parameters."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


@define
class _File:
    """What one process has scored: of which model, and the log-probabilities by key."""

    model: str
    known: dict[bytes, Pair] = field(factory=dict)


def _compute(run: StageRun, score: Score, path: Path, marks: Mapping[str, int]) -> None:
    """Score what is not known of this process's share of the samples, in the data's order, saving now and then.

    Packs are made of what is missing, so a pass that was stopped goes on with the same packs and the same bits, and one
    whose data was corrected scores what is new.
    """
    model, digest = run.pipeline.model, _digest(run.pipeline.model)
    file = _read(path) if path.exists() else _File(digest)
    if file.model != digest:
        file = _File(digest)
    share = range(run.rank, len(run.samples), run.world)
    rows = _missing(_rows(run, share), marks, set(file.known))
    saved = time.monotonic()
    run.tell("reference-start", {"samples": len(share), "known": len(file.known)})
    with _frozen(model):
        for group in pack(rows, max_tokens=run.recipe.max_tokens, max_patches=run.recipe.max_patches):
            batch = collate(group)
            with run.autocast():
                logps = score(model, batch.to(model.device))[0].tolist()
            file.known |= zip(keys_of(batch, marks), map(tuple, logps), strict=True)
            if time.monotonic() - saved > SAVE_SECONDS:
                _write(path, file)
                saved = time.monotonic()
                run.tell("reference", {"known": len(file.known), "samples": len(share)})
    _write(path, file)
    run.tell("reference-end", {"answers": 2 * len(file.known)})


def _missing(rows: Iterator[Row], marks: Mapping[str, int], seen: set[bytes]) -> Iterator[Row]:
    """Rows whose content has not been seen, each once."""
    for row in rows:
        (key,) = keys_of(collate([row]), marks)
        if key not in seen:
            seen.add(key)
            yield row


def _rows(run: StageRun, indices: Sequence[int]) -> Iterator[Row]:
    """Rows of samples; what cannot be used is left to the feed's judgement."""
    maker = stage_maker(run.pipeline, run.recipe, run.stage)

    def make(index: int) -> Row | None:
        try:
            return maker.row(run.samples[index], random.Random(0))
        except BadSample:
            return None

    return (row for row in in_order(make, indices, run.recipe.workers) if row is not None)


def _read(path: Path) -> _File:
    try:
        with safe_open(path, "pt") as file:
            facts, keys, logps = file.metadata(), file.get_tensor("keys"), file.get_tensor("logps")
        if facts["sha256"] != _sum(facts["model"], keys, logps):
            raise ValueError("its checksum differs")
        known = {k.tobytes(): (p[0], p[1]) for k, p in zip(keys.numpy(), logps.tolist(), strict=True)}
        return _File(facts["model"], known)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        fix = "start anew in another folder, or delete it if the stage has not begun"
        raise TrainingError("reference log-probabilities are damaged", who=str(path), why=str(error), fix=fix) from None


def _write(path: Path, file: _File) -> None:
    keys = torch.tensor([list(key) for key in file.known], dtype=torch.uint8).reshape(-1, 32)
    logps = torch.tensor(list(file.known.values()), dtype=torch.float32).reshape(-1, 2)
    facts = {"model": file.model, "sha256": _sum(file.model, keys, logps)}
    _save({"keys": keys, "logps": logps}, path, facts)


def _sum(model: str, keys: Tensor, logps: Tensor) -> str:
    """sha256 of all that a file says: nothing else would tell other log-probabilities from the right ones."""
    found = hashlib.sha256(f"{model} {keys.shape} {logps.shape} {logps.dtype}".encode())
    for tensor in (keys, logps):
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    with saving(path), appearing_file(path) as temporary:
        save_file(tensors, temporary, metadata)


def _meet() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextlib.contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@frozen(eq=False)
class OnlineReference:
    """Log-probabilities computed batch by batch.

    Attributes:
        model: a frozen copy, or the trained model itself where `adapters` can be switched off.
        autocast: a context with the run's precision.
        adapters: peft's layers.
    """

    model: VisionLanguageModel
    score: Score
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    adapters: Sequence[Any] = ()

    @classmethod
    def of(cls, run: StageRun, score: Score) -> OnlineReference:
        """The base of a model of which only adapters learn; else a copy, which the run's folder keeps for a restart.

        Raises:
            TrainingError: the stage has begun and the copy is missing or damaged.
        """
        model = run.pipeline.model
        if adapters := _adapters(model):
            return cls(model, score, run.autocast, adapters)
        frozen_copy = copy.deepcopy(model).requires_grad_(False)
        path = run.out / f"reference-{run.index:02d}-model.safetensors"
        if run.position.step == 0:
            if run.rank == 0:
                _save({n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}, path)
            _meet()
        else:
            _restore(frozen_copy, path)
        return cls(frozen_copy, score, run.autocast)

    def __call__(self, batch: Batch) -> Tensor:
        """(2P,) chosen and rejected in turn."""
        with _frozen(self.model), _without(self.adapters), self.autocast():
            return self.score(self.model, batch.to(self.model.device))[0].reshape(-1)


def _adapters(model: torch.nn.Module) -> list[Any]:
    """peft's layers, if they hold everything that learns."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "enable_adapters") and hasattr(m, "base_layer")}
    learnt = [n for n, p in model.named_parameters() if p.requires_grad]
    inside = all(any(n.startswith(f"{layer}.") for layer in layers) and ".base_layer." not in n for n in learnt)
    return list(layers.values()) if layers and inside else []


@contextlib.contextmanager
def _without(adapters: Sequence[Any]) -> Iterator[None]:
    # switching adapters off also freezes them, for peft; what learnt is to go on learning
    learnt = [p for layer in adapters for p in layer.parameters() if p.requires_grad]
    for layer in adapters:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in adapters:
            layer.enable_adapters(True)
        for parameter in learnt:
            parameter.requires_grad_(True)


def _restore(model: torch.nn.Module, path: Path) -> None:
    try:
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[name])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        why, fix = str(error), "start anew in another folder"
        raise TrainingError("the reference model cannot be restored", who=str(path), why=why, fix=fix) from None
