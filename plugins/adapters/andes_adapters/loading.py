"""Adapters of a registry while a model runs: attached, tried on a probe, detached."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from andes_adapters.attaching import adaptable_compiled, add_adapter, remove_adapter
from andes_adapters.int8 import as_int8, widest
from andes_adapters.reading import read_adapter
from andes_adapters.registry import Registry
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import Adapter

PROBE = [{"role": "user", "content": "What is written here? 2 + 2 = 4."}]


@frozen(kw_only=True)
class Loaded:
    """What loading an adapter took and did.

    Attributes:
        nbytes: of A, B and scales in memory, as the backend holds them if it says so.
        load_ms: reading, comparing, laying out.
        switch_ms: median of giving a session this adapter, or none. change: largest change of a logit of the probe.
    """

    name: str
    nbytes: int
    load_ms: float
    switch_ms: float
    change: float


def load(registry: Registry, pipeline: Pipeline, name: str, *, int8: bool = False) -> Loaded:
    """Attach an adapter of a registry, while other sessions decode, and see that it changes the logits of a probe.

    Args:
        int8: with int8 matrices, whose scales are the widest over all adapters of the registry.

    Raises:
        ConfigError: there is none of that name, it changes nothing, it belongs to another base, or some are stored as
            int8 with scales that cannot be shared. CheckpointError: its files were changed. It is detached then.
    """
    adaptable_compiled(pipeline)  # compiled before anything is timed
    begin = time.perf_counter()
    folder = registry.verified(name)
    adapter = read_adapter(name, folder, pipeline.model.language_model)
    made = None
    if int8:
        language = pipeline.model.language_model
        others = [read_adapter(n, registry.verified(n), language) for n in registry.entries() if n != name]
        ranges = widest([adapter, *others])
        made, *_ = (as_int8(one, ranges) for one in [adapter, *others])  # those that are int8 have to share them, too
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
    laid_out = getattr(getattr(pipeline.compiled, "adapters", None), "nbytes", None)  # by a backend with its own layout
    nbytes = nbytes_of(made or adapter) if laid_out is None else laid_out(name)
    return Loaded(name=name, nbytes=nbytes, load_ms=took, switch_ms=switch, change=change)


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
