"""Training stages: which modules learn, and a loss that means what the loop takes it for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch

from andes_sdk.errors import TrainingError
from andes_sdk.testing.registry import DataLines, check, measure
from andes_sdk.testing.require import NotApplicable, require, require_bits, require_close, require_finite
from andes_sdk.types import ConversationStage, FeedingStage, ModelChange, TrainingStage
from andes_training.packing import Batch
from andes_training.testing.material import fed, stage_batches, stage_run, stage_samples

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.subject import Subject

KIND = "training_stages"
COUNTS = {KIND: 11}
"""Kind -> number of checks; the kit compares."""
STEPS, RATE = 12, 3e-3


def _stages(subject: Subject) -> list[Any]:
    return list(subject.assembly.manager.get_plugin(subject.name).andes_training_stages())  # type: ignore[union-attr]


def _batches(subject: Subject, pipe: Pipeline, stage: Any, count: int = 2) -> list[Any]:
    return stage_batches(pipe, stage, getattr(subject.cls, "samples", ()), count)


def _under(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _trained(model: VisionLanguageModel, rates: Mapping[str, float]) -> list[torch.nn.Parameter]:
    """Freeze what no prefix names, as the loop does -> the parameters that learn."""
    found = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(_under(prefix, name) for prefix in rates))
        if parameter.requires_grad:
            found.append(parameter)
    return found


def _missed(model: VisionLanguageModel, prefixes: Iterable[str]) -> list[str]:
    """Prefixes under which every gradient is absent or zero."""
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return [m for m in prefixes if not any(_under(m, n) and bool(g.abs().max() > 0) for n, g in grads.items())]


def _fresh(subject: Subject) -> Pipeline:
    pipe = subject.pipeline()
    pipe.model.train()
    return pipe


@contextmanager
def _changed(model: VisionLanguageModel, stage: Any) -> Iterator[None]:
    """The model as a stage changes it for its length, if it does; what it puts in is the same each time."""
    if not isinstance(stage, ModelChange):
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stage.put_in(model)
    try:
        yield
    finally:
        stage.take_out(model)


@measure
@torch.no_grad()
def _losses(pipe: Pipeline, samples: DataLines) -> Mapping[str, object]:
    """The loss of every stage of a pipeline."""
    found = {}
    for name, stage in pipe.collection("training_stages").items():
        with _changed(pipe.model, stage):
            loss, _ = stage.loss(pipe.model, stage_batches(pipe, stage, samples)[-1])
        found[f"the loss of stage {name!r}"] = float(loss)
    return found


@check(KIND, "every stage has a name of its own")
def _named(subject: Subject) -> None:
    stages = _stages(subject)
    require(stages, "andes_training_stages returned no stage")
    for stage in stages:
        require(isinstance(stage, TrainingStage), f"{type(stage).__name__} is no TrainingStage: name, rates, loss")
        require(isinstance(stage.name, str) and stage.name, f"a stage's name is {stage.name!r}")
    names = [s.name for s in stages]
    require(len(set(names)) == len(names), f"two stages share a name: {names}")


@check(KIND, "learning rates are positive and name modules that exist")
def _rates(subject: Subject) -> None:
    model = subject.pipe.model
    for stage in _stages(subject):
        with _changed(model, stage):
            names, given = [n for n, _ in model.named_parameters()], stage.rates(model)
        require(given, f"stage {stage.name!r} trains nothing")
        for prefix, rate in given.items():
            require(
                any(_under(prefix, n) for n in names), f"stage {stage.name!r} trains {prefix!r}, which does not exist"
            )
            positive = isinstance(rate, float) and 0 < rate < math.inf
            require(positive, f"stage {stage.name!r} trains {prefix!r} at {rate!r}; leave it out to freeze it")


@check(KIND, "the loss is a finite scalar with a gradient, the figures are numbers")
def _loss(subject: Subject) -> None:
    pipe = _fresh(subject)
    for stage in _stages(subject):
        with _changed(pipe.model, stage):
            trained = _trained(pipe.model, stage.rates(pipe.model))
            value, figures = stage.loss(pipe.model, _batches(subject, pipe, stage)[-1])
            shape = tuple(value.shape)
            require(value.ndim == 0, f"stage {stage.name!r}: the loss has shape {shape}, it must be a scalar")
            require_finite(value, f"stage {stage.name!r}: the loss")
            require(trained and value.requires_grad, f"stage {stage.name!r}: no gradient flows from the loss")
            for name, figure in figures.items():
                number = isinstance(figure, float) and math.isfinite(figure)
                named = isinstance(name, str) and number
                require(named, f"stage {stage.name!r}: figure {name!r} is {figure!r}, no number")


@check(KIND, "only the modules it names get gradients, and the loss changes no weight")
def _frozen(subject: Subject) -> None:
    pipe = _fresh(subject)
    for stage in _stages(subject):
        own = {id(p) for p in pipe.model.parameters()}
        with _changed(pipe.model, stage):
            given = stage.rates(pipe.model)
            _trained(pipe.model, given)
            pipe.model.zero_grad()
            before = {n: p.detach().clone() for n, p in pipe.model.named_parameters()}
            batch = _batches(subject, pipe, stage)[-1]
            stage.loss(pipe.model, batch)[0].backward()
            for name, parameter in pipe.model.named_parameters():
                require_bits(parameter.detach(), before[name], f"stage {stage.name!r}: {name} after computing the loss")
                learns = any(_under(prefix, name) for prefix in given)
                require(
                    learns or not parameter.requires_grad,
                    f"stage {stage.name!r}: thaws {name}, which its rates leave out",
                )
                require(
                    learns or parameter.grad is None,
                    f"stage {stage.name!r}: {name} gets a gradient, its rates leave it out",
                )
            blind = "image" not in getattr(batch, "media", {})
            seen = [prefix for prefix in given if not blind or prefix.startswith("language_model")]  # else no pictures
            missed = _missed(pipe.model, seen)
            added = [p for p in pipe.model.parameters() if id(p) not in own and p.grad is not None]
            if missed and added:  # B of an adapter begins at zero, and so does the gradient of its A
                torch.optim.AdamW(added, lr=RATE).step()
                stage.loss(pipe.model, batch)[0].backward()
                known = {n for n, p in pipe.model.named_parameters() if id(p) in own}
                later = _missed(pipe.model, seen)
                missed = [m for m in missed if m in later or any(_under(m, name) for name in known)]
            require(not missed, f"stage {stage.name!r}: no gradient reaches {', '.join(missed[:8])}")


@check(KIND, "the loss of a pack is the mean over the tokens of its samples")
@torch.no_grad()
def _packed(subject: Subject) -> None:
    pipe = subject.pipe
    stages = [s for s in _stages(subject) if not isinstance(s, FeedingStage)]
    if not stages:
        raise NotApplicable("its stages make their own batches")
    for stage in stages:
        with _changed(pipe.model, stage):
            *single, pack = _batches(subject, pipe, stage, 3)
            parts = [stage.loss(pipe.model, b)[0] * b.tokens for b in single]
            wanted = torch.stack(parts).sum() / pack.tokens
            got = stage.loss(pipe.model, pack)[0]
            require_close(got, wanted, 1e-5, f"stage {stage.name!r}: loss of a pack against its samples' token mean")


@check(KIND, "the same batch gives the same loss")
@torch.no_grad()
def _repeatable(subject: Subject) -> None:
    pipe = subject.pipe
    for stage in _stages(subject):
        with _changed(pipe.model, stage):
            batch = _batches(subject, pipe, stage)[-1]
            one, two = (stage.loss(pipe.model, batch)[0] for _ in range(2))
            require_bits(one, two, f"stage {stage.name!r}: loss of one batch computed twice")


@check(KIND, "a few steps on one batch lower the loss")
def _learns(subject: Subject) -> None:
    for stage in _stages(subject):
        pipe = _fresh(subject)
        with _changed(pipe.model, stage):
            optimizer = torch.optim.AdamW(_trained(pipe.model, stage.rates(pipe.model)), lr=RATE)
            batch, values = _batches(subject, pipe, stage)[-1], []
            for _ in range(STEPS):
                optimizer.zero_grad()
                value, _ = stage.loss(pipe.model, batch)
                value.backward()
                optimizer.step()
                values.append(float(value.detach()))
            require(
                values[-1] < values[0],
                f"stage {stage.name!r}: {values[0]:.4f} before {STEPS} steps, {values[-1]:.4f} after",
            )


@check(KIND, "only supervised rows count")
@torch.no_grad()
def _supervised(subject: Subject) -> None:
    pipe = subject.pipe
    for stage in _stages(subject):
        with _changed(pipe.model, stage):
            batch = _batches(subject, pipe, stage, 1)[-1]
            if not isinstance(batch, Batch):
                continue
            before = stage.loss(pipe.model, batch)[0]
            last = int((batch.labels != -100).nonzero().max())
            # rows after the last supervised one predict nothing and are seen by nobody that counts
            batch.ids[last + 1 :] = torch.where(batch.ids[last + 1 :] == 1, 2, 1)
            if last + 1 < len(batch.ids):
                require_close(
                    stage.loss(pipe.model, batch)[0],
                    before,
                    1e-5,
                    f"stage {stage.name!r}: loss after unsupervised rows changed",
                )


@check(KIND, "conversations of a sample are lists of messages, and other lines are refused")
def _conversations(subject: Subject) -> None:
    stages: list[Any] = [s for s in _stages(subject) if isinstance(s, ConversationStage)]
    if not stages:
        raise NotApplicable("its stages read the usual lines")
    for stage in stages:
        for sample in stage_samples(getattr(subject.cls, "samples", ()), 2):
            many = stage.conversations(sample.entry)
            roles = many and all(isinstance(m, Mapping) and "role" in m for one in many for m in one)
            require(roles, f"stage {stage.name!r}: no lists of messages made of {sample.entry!r}")
        try:
            stage.conversations({"nobody": "writes this"})
        except TrainingError:
            continue
        require(False, f"stage {stage.name!r}: a line of another shape must raise TrainingError")


@check(KIND, "a stage that changes the model leaves its modules and weights as they were")
def _left(subject: Subject) -> None:
    stages: list[Any] = [s for s in _stages(subject) if isinstance(s, ModelChange)]
    if not stages:
        raise NotApplicable("its stages change no module")
    pipe = _fresh(subject)
    before = {n: t.clone() for n, t in pipe.model.state_dict().items()}
    modules = {n: type(m) for n, m in pipe.model.named_modules()}
    for stage in stages:
        with _changed(pipe.model, stage):
            pass
        after = pipe.model.state_dict()
        require(after.keys() == before.keys(), f"stage {stage.name!r}: leaves {sorted(after.keys() ^ before.keys())}")
        found = {n: type(m) for n, m in pipe.model.named_modules()}
        require(found == modules, f"stage {stage.name!r}: leaves other modules than it found")
        for name, tensor in after.items():
            require_bits(tensor, before[name], f"stage {stage.name!r}: {name} after nothing was learnt")


@check(KIND, "a feed goes on from any of its positions with the same batches")
def _feeds(subject: Subject) -> None:
    stages: list[Any] = [s for s in _stages(subject) if isinstance(s, FeedingStage)]
    if not stages:
        raise NotApplicable("its stages use the usual feed")
    for stage in stages:
        with stage_run(subject.pipe, stage, getattr(subject.cls, "samples", ()), 3) as run:
            whole = fed(stage, run, 4)
            rest = fed(stage, attrs.evolve(run, position=whole[1][0]), 2)
        for (position, batch), (again, other) in zip(whole[2:], rest, strict=True):
            require(position == again, f"stage {stage.name!r}: stands at {again} instead of {position}")
            for name in ("tokens", "samples"):
                number = getattr(batch, name, None)
                require(type(number) is int and number > 0, f"stage {stage.name!r}: a batch's {name} is {number!r}")
            _require_same(batch, other, f"stage {stage.name!r}: batch at {position}")


def _require_same(one: Any, other: Any, message: str) -> None:
    if isinstance(one, torch.Tensor):
        require_bits(one, other, message)
    elif isinstance(one, Mapping):
        require(one.keys() == other.keys(), f"{message}: {sorted(one)} and {sorted(other)}")
        for key in one:
            _require_same(one[key], other[key], f"{message}, {key}")
    elif attrs.has(type(one)):
        for part in attrs.fields(type(one)):
            if part.eq or part.init:
                _require_same(getattr(one, part.name), getattr(other, part.name), f"{message}, {part.name}")
    elif isinstance(one, int | float | str | tuple | list):
        require(one == other, f"{message}: {one!r} and {other!r}")
