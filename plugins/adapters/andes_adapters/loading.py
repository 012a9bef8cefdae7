"""Adapters of a registry while a model runs: attached, tried on a probe, made int8, detached."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from andes_adapters.attaching import adaptable_compiled, add_adapter, remove_adapter
from andes_adapters.reading import read_adapter
from andes_adapters.registry import Registry
from andes_sdk.errors import ConfigError
from andes_sdk.types import Adapter, LowRank

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

PROBE = [{"role": "user", "content": "What is written here? 2 + 2 = 4."}]
Widest = Mapping[str, tuple[float, float]]
"""Layer -> largest magnitude of A and of B."""


@frozen(kw_only=True)
class Loaded:
    """What loading an adapter took and did.

    Attributes:
        nbytes: of A and B in memory as the adapter holds them. load_ms: reading, comparing, laying out.
        switch_ms: median of giving a session this adapter, or none. change: largest change of a logit of the probe.
    """

    name: str
    nbytes: int
    load_ms: float
    switch_ms: float
    change: float


def widest(adapters: Iterable[Adapter]) -> dict[str, tuple[float, float]]:
    """Per layer the largest magnitudes over several adapters: what integers of all of them share a scale of."""
    found: dict[str, tuple[float, float]] = {}
    for adapter in adapters:
        for name, low in adapter.layers.items():
            a, b = (float(m.abs().max()) if m.numel() else 0.0 for m in low.matrices())
            before = found.get(name, (0.0, 0.0))
            found[name] = (max(a, before[0]), max(b, before[1]))
    return found


def as_int8(adapter: Adapter, ranges: Widest) -> Adapter:
    """The same with int8 matrices: one scale for each of A and B of a layer, that of `widest`.

    So all adapters of a base have the same scales, and a graph that takes A and B as inputs needs no others.

    Raises:
        ConfigError: a matrix beyond its range.
    """
    layers = {}
    for name, low in adapter.layers.items():
        (a, a_scale), (b, b_scale) = (
            _rounded(m, most, f"{adapter.name}: {name}")
            for m, most in zip(low.matrices(), ranges.get(name, (0.0, 0.0)), strict=True)
        )
        layers[name] = LowRank(a=a, b=b, scale=low.scale, a_scale=a_scale, b_scale=b_scale)
    return evolve(adapter, layers=layers)


def _rounded(matrix: Tensor, most: float, who: str) -> tuple[Tensor, Tensor]:
    if float(matrix.abs().max()) > most * (1 + 1e-6):
        fix = "take the widest ranges over all adapters"
        raise ConfigError("a matrix is beyond its range", who=who, why=f"largest {most:g}", fix=fix)
    scale = most / 127 or 1.0
    return torch.round(matrix / scale).to(torch.int8), torch.full((len(matrix),), scale)


def load(registry: Registry, pipeline: Pipeline, name: str, *, int8: bool = False) -> Loaded:
    """Attach an adapter of a registry, while other sessions decode, and see that it changes the logits of a probe.

    Args:
        int8: with int8 matrices, whose scales are the widest over all adapters of the registry.

    Raises:
        ConfigError: there is none of that name, it changes nothing, or it belongs to another base. CheckpointError: its
            files were changed. It is detached then.
    """
    begin = time.perf_counter()
    folder = registry.verified(name)
    adapter = read_adapter(name, folder, pipeline.model.language_model)
    made = None
    if int8:
        language = pipeline.model.language_model
        others = [read_adapter(n, registry.verified(n), language) for n in registry.entries() if n != name]
        made = as_int8(adapter, widest([adapter, *others]))
    add_adapter(pipeline, name, folder, made=made)
    took = 1e3 * (time.perf_counter() - begin)
    try:
        change = _change(pipeline, name)
        if not change > 0:
            fix = "train it longer, or look at its learning rate; was the right adapter added?"
            raise ConfigError("changes no logit of a probe", who=f"adapter {name!r}", fix=fix)
        switch = _switch(pipeline, name)
    except BaseException:
        remove_adapter(pipeline, name)
        raise
    return Loaded(name=name, nbytes=nbytes_of(made or adapter), load_ms=took, switch_ms=switch, change=change)


def nbytes_of(adapter: Adapter) -> int:
    """Bytes of A, B and their scales."""
    parts = (m for low in adapter.layers.values() for m in (low.a, low.b, low.a_scale, low.b_scale))
    return sum(m.nbytes for m in parts if m is not None)


def _session(pipeline: Pipeline, name: str | None) -> Any:
    session = pipeline.session()
    session.adapter = name
    return session


def _change(pipeline: Pipeline, name: str) -> float:
    """Largest change of a logit of the probe's last row; not finite is an error of the caller's comparison."""
    inputs, seen = pipeline.prepare(PROBE), []
    for one in (None, name):
        session = _session(pipeline, one)
        seen.append(session.prefill(inputs).detach().float().clone())
        session.close()
    return float((seen[1] - seen[0]).abs().max())


def _switch(pipeline: Pipeline, name: str) -> float:
    """Milliseconds; the median of 200 changes of one session."""
    session, took = _session(pipeline, None), []
    for n in range(200):
        begin = time.perf_counter()
        session.adapter = name if n % 2 == 0 else None
        took.append(1e3 * (time.perf_counter() - begin))
    session.close()
    return statistics.median(took)


def unload(pipeline: Pipeline, name: str) -> None:
    """Detach it and free its matrices; refused while open sessions use it.

    Raises:
        ConfigError: there is none of that name. SessionError: open sessions use it.
    """
    adaptable_compiled(pipeline).remove_adapter(name)
