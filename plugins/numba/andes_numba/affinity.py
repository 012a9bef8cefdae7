"""Which CPU each thread runs on: what may be named, and what this machine allows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from andes_sdk.errors import BackendUnavailable, ConfigError

MOST = 8192
"""CPUs that Linux can be built for."""


def cpus_named(text: str) -> tuple[int, ...]:
    """CPU numbers of a list such as "0,2,4-7", in its order; none for "".

    Raises:
        ConfigError: what is no such list, a number too high, or a CPU named twice.
    """
    found: list[int] = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r" *([0-9]{1,5})(?: *- *([0-9]{1,5}))? *", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MOST:
            raise ConfigError(f"affinity takes CPU numbers below {MOST} such as 0,2,4-7, not {text!r}")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"affinity names a CPU twice: {text!r}")
    return tuple(found)


def is_affinity(plugin: Any, attribute: Any, value: str) -> None:
    """Validate the option. Raises ConfigError, as `cpus_named`."""
    cpus_named(value)


def choose_cpus(wanted: str, threads: int, layer: str) -> tuple[int, ...]:
    """One CPU for each thread, or none if none are named.

    Raises:
        BackendUnavailable: a system that pins no threads, a threading layer whose threads change, CPUs that this
            process may not use, or fewer CPUs than threads.
    """
    cpus = cpus_named(wanted)
    if not cpus:
        return ()
    if not hasattr(os, "sched_setaffinity"):
        raise _refusal("threads cannot be pinned here", f"{sys.platform} has no sched_setaffinity", "leave it out")
    if layer != "omp":
        fix = "set NUMBA_THREADING_LAYER=omp before Python starts, or leave it out"
        raise _refusal(f"threads of {layer} cannot be pinned", f"{layer} gives work to any thread", fix)
    allowed = os.sched_getaffinity(0)
    if absent := [cpu for cpu in cpus if cpu not in allowed]:
        fix = f"name some of these: {listed(sorted(allowed))}"
        raise _refusal(f"no CPU {listed(absent)}", "this process may not use it, or the machine lacks it", fix)
    if threads > len(cpus):
        fix = f"name {threads} CPUs, or use threads<={len(cpus)}"
        raise _refusal(f"more threads ({threads}) than CPUs named ({len(cpus)})", "each thread needs its own", fix)
    return cpus[:threads]


def _refusal(what: str, why: str, fix: str) -> BackendUnavailable:
    return BackendUnavailable(what, who="numba.affinity", why=why, fix=fix)


def tell_cpus(cpus: Sequence[int]) -> str:
    """Where threads run, for `explain()` and `facts()`."""
    return f"CPUs {listed(cpus)}" if cpus else "none: the operating system places threads"


def listed(cpus: Sequence[int]) -> str:
    """CPU numbers as text."""
    return ", ".join(map(str, cpus))
