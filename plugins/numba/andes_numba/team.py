"""The threads of one compiled model, and where they run while it computes.

Pinning lasts for a pass: OpenMP ends threads when a smaller region of anybody's comes between, and starts new ones with
the mask of the thread that calls, which is a member of the team itself. So every pass pins its own, and lets all of
them go when it ends; what else runs in the process never finds a thread pinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from attrs import field, frozen
from numba import njit, prange
from numba.core import types

from andes_sdk.errors import BackendUnavailable, SessionError

from .affinity import MOST, choose_cpus, cpus_named
from .machine import check_process, choose_threads, threading_layer

WORDS = MOST // 64
"""A set of CPUs, `cpu_set_t`, in words of 64 bits."""

# of the calling thread, for a pid of 0; only looked up where `choose_cpus` found that the system has them
_get = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, types.uintp, types.uintp))
_set = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.uintp, types.uintp))
_self = types.ExternalFunction("pthread_self", types.uintp())


@njit(parallel=True, cache=True)
def _pin(masks, saved, owners, threads):
    """Thread n gets mask n (threads, WORDS); `saved` the mask of the caller, owners (threads,) who was pinned, or 0."""
    if _get(0, saved.nbytes, saved.ctypes.data) >= 0:
        for n in prange(threads):
            if _set(0, saved.nbytes, masks[n].ctypes.data) == 0:
                owners[n] = _self()


@njit(parallel=True, cache=True)
def _release(saved, threads):
    """Every thread gets one mask."""
    for _ in prange(threads):
        _set(0, saved.nbytes, saved.ctypes.data)


@frozen(eq=False)
class Team:
    """Threads, and a CPU for each of them or none: then the operating system places them."""

    threads: int
    cpus: tuple[int, ...] = ()
    _masks: np.ndarray = field(init=False)

    @_masks.default
    def _one_each(self) -> np.ndarray:
        masks = np.zeros((len(self.cpus), WORDS), np.uint64)
        for n, cpu in enumerate(self.cpus):
            masks[n, cpu // 64] = 1 << cpu % 64
        return masks

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, Numba uses these threads, each on its CPU.

        Raises:
            SessionError: a forked child (`check_process`), or a CPU that has been taken from this process.
        """
        check_process()
        before = numba.get_num_threads()
        numba.set_num_threads(self.threads)
        try:
            if self.cpus:
                with self._pinned():
                    yield
            else:
                yield
        finally:
            numba.set_num_threads(before)  # other users of Numba in this process have their own number

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        saved, owners = np.zeros(WORDS, np.uint64), np.zeros(self.threads, np.uint64)
        _pin(self._masks, saved, owners, self.threads)
        try:
            if not owners.all() or len(set(owners.tolist())) < self.threads:
                raise SessionError(
                    "threads could not be pinned",
                    who="numba.affinity",
                    why="OpenMP started fewer of them" if owners.all() else "a CPU was taken from this process",
                    fix="unset OMP_DYNAMIC and OMP_THREAD_LIMIT, name CPUs that are there, or leave affinity out",
                )
            yield
        finally:
            _release(saved, self.threads)


def gather(threads: int, affinity: str) -> Team:
    """A team of `threads`, each on one of the CPUs named; 0: one for each of them, or all that Numba may start.

    Raises:
        BackendUnavailable: see `choose_threads`, `threading_layer` and `choose_cpus`; or threads that cannot be pinned.
    """
    number = choose_threads(threads, len(cpus_named(affinity)))
    team = Team(number, choose_cpus(affinity, number, threading_layer()))
    try:
        with team.at_work():
            return team
    except SessionError as error:
        raise BackendUnavailable(error.what, who=error.who, why=error.why, fix=error.fix) from None
