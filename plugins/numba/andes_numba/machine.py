"""What this machine can run: kernel sets, the threading layer, and compiled code that is kept between processes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
from numba import njit
from numba.core import config
from numba.core.event import Event, Listener, register, unregister

from andes_sdk.errors import BackendUnavailable, SessionError

from .affinity import cpus_named, listed, tell_cpus
from .apart import rebuilt, reduced

if TYPE_CHECKING:
    from .options import Options

_LOG = logging.getLogger("andes_numba")

KERNEL_SETS = {
    "avx512vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni", "f16c", "fma"}),
    "avx2": frozenset({"avx2", "fma", "f16c"}),
    "portable": frozenset(),
}
"""Kernel set -> processor features it needs, best first."""


def features() -> frozenset[str]:
    """Features Numba generates code for: the processor's, or those in `NUMBA_CPU_FEATURES`."""
    if config.CPU_FEATURES is not None:
        return frozenset(f[1:] for f in config.CPU_FEATURES.split(",") if f.startswith("+"))
    return frozenset(name for name, there in llvmlite.binding.get_host_cpu_features().items() if there)


def choose_kernels(wanted: str) -> tuple[str, str]:
    """A kernel set by name, or "auto" for the best there is -> (set, why).

    Raises:
        BackendUnavailable: the processor lacks something the set needs.
    """
    there = features()
    missing = {name: sorted(needs - there) for name, needs in KERNEL_SETS.items()}
    usable = [name for name, lacks in missing.items() if not lacks]
    if wanted == "auto":
        better = [f"{n} lacks {', '.join(missing[n])}" for n in KERNEL_SETS if missing[n]]
        return usable[0], "; ".join(better) or "the processor has everything it needs"
    if wanted not in usable:
        raise BackendUnavailable(
            f"this processor cannot run the kernel set {wanted!r}",
            who="numba.kernels",
            why=f"it lacks {', '.join(missing[wanted])}",
            fix=f"use kernels='auto', or one of {', '.join(usable)}",
        )
    return wanted, "asked for"


def intended(options: Options) -> Mapping[str, str]:
    """What the backend would do with these options, for `explain()`.

    Raises:
        BackendUnavailable: as `choose_kernels` and `choose_threads`.
    """
    kernels, why = choose_kernels(options.kernels)
    cpus = cpus_named(options.affinity)
    threads = choose_threads(options.threads, len(cpus))
    return {
        "kernels": f"{kernels}: {why}",
        "threads": str(threads),
        "affinity": tell_cpus(cpus[:threads]) + (f"; not used: {listed(cpus[threads:])}" if cpus[threads:] else ""),
        "format": f"{options.format}, head {options.head or options.format}; an artefact keeps its own",
        "numbers": f"activations {options.activations}, kv {options.kv}",
        "vision": f"{options.vision}: encoder and projector, where they can be compiled",
        "on torch": "embedding; of an artefact in float32 a kernel looks it up",
    }


@cache
def threading_layer() -> str:
    """The layer Numba starts threads with.

    Raises:
        BackendUnavailable: it is `workqueue`, which needs 50 to 70 µs per parallel region (OpenMP and TBB: about 1 µs)
            and must not be entered from two threads at once.
    """
    _start_threads()
    layer = numba.threading_layer()
    _STARTED.append(os.getpid())
    if layer == "workqueue":
        raise BackendUnavailable(
            "Numba's threads would run on 'workqueue'",
            who="numba",
            why="it is 50 times slower to start a parallel region, and a token needs over a hundred",
            fix="install an OpenMP runtime (libgomp1) or TBB, and leave NUMBA_THREADING_LAYER unset",
        )
    return layer


_STARTED: list[int] = []
"""The process that started Numba's threads."""


def check_process() -> None:
    """Refuse to run in a child forked from a process whose threads are OpenMP's: it would end the child unasked.

    Raises:
        SessionError: this is such a child.
    """
    if _STARTED and _STARTED[0] != os.getpid() and numba.threading_layer() == "omp":
        raise SessionError(
            "a model compiled in another process cannot run in a child forked from it",
            who="numba",
            why="GNU OpenMP does not survive fork() once its threads have started",
            fix="start processes with multiprocessing's 'spawn' or 'forkserver', or open the model in the child first",
        )


def code_origin(*functions: Any) -> str:
    """Whether the machine code of `kept` functions came from the cache on disk, or was compiled in this process."""
    found = [function.stats for function in functions]
    hits, misses = (sum(sum(getattr(f, kind).values()) for f in found) for kind in ("cache_hits", "cache_misses"))
    if not hits and not misses:
        return "not loaded yet"
    folder = found[0].cache_path
    if not misses:
        return f"from the cache {folder}"
    return f"{misses} of {hits + misses} functions compiled in this process, and kept in {folder}"


@njit(parallel=True, cache=True)
def _start_threads() -> int:
    started = 0
    for _ in numba.prange(2):
        started += 1
    return started


def choose_threads(wanted: int, cpus: int = 0) -> int:
    """Threads to use: `wanted`; for 0 one for each of the CPUs named, or every one Numba may start.

    Raises:
        BackendUnavailable: more than Numba may start.
    """
    most = config.NUMBA_NUM_THREADS
    if wanted > most:
        raise BackendUnavailable(
            f"{wanted} threads are asked for, Numba may start {most}",
            who="numba.threads",
            fix=f"use threads<={most}, or set NUMBA_NUM_THREADS before Python starts",
        )
    return wanted or min(cpus or most, most)


class _Telling(Listener):
    """Says once in a process that machine code is being compiled, since that is silent and takes long."""

    def on_start(self, event: Event) -> None:
        """A function that is not in the cache."""
        unregister("numba:compile", self)
        _LOG.warning("numba: compiling machine code, which may take a minute; later starts find it in the cache")

    def on_end(self, event: Event) -> None:
        """Nothing."""


@cache
def tell_of_compiling() -> None:
    """From the first call on, `_Telling` listens; its line goes to the log "andes_numba", by default to stderr."""
    register("numba:compile", _Telling())


@cache
def _sources() -> tuple[str, str]:
    """Numba's version, and a digest of this package: what compiled code was made from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return numba.__version__, digest.hexdigest()


def kept(function: Callable[..., Any]) -> Any:
    """`njit` whose machine code is kept on disk until any file of this package changes; to be called from Python only.

    Numba by itself looks only at the file of the function, not at those of the functions it calls; and beside machine
    code it keeps the code of LLVM, for callers that are compiled later, which takes ten times the memory.
    """
    compiled = njit(cache=True, nogil=True)(function)
    compiled._cache._cache_file._source_stamp = _sources()
    # told apart before anything is unpickled: an index of other sources may name classes that are gone
    compiled._cache._cache_file._version = " ".join(_sources())
    compiled._cache._impl.reduce, compiled._cache._impl.rebuild = reduced, rebuilt
    return compiled
