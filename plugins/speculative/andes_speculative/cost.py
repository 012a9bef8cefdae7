"""What verifying costs: the time of a pass with k rows over that of a pass with one, c(k), on this machine.

Measured once for each kind of model and backend in a process, with sessions of its own, when a guess first stands to be
verified. Passes of one to `SIZES[-1]` rows run in turns behind `CONTEXT` rows; the shortest time of each size counts,
since a busy neighbour only adds to it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import define, frozen

from andes_sdk.errors import AndesError
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Work

SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 64
ROUNDS = 2, 12
"""At least and at most."""
SECONDS = 0.5
"""No further round once measuring took this long."""
SLOW = 0.05, 16
"""Seconds of one row from which larger sizes than this are left out: they would take seconds."""


LATELY = 0.1
"""Weight of the newest pass of a conversation."""
PAUSE = 4.0
"""Passes that took so many times as long as others were interrupted, and say nothing."""
FADE = 0.005
"""What a pass without guesses takes from the raised price: half of it in about 140 passes."""
ENOUGH = 4
"""Passes of one row, before others are compared with them."""


@frozen
class Cost:
    """c(k) at some k, straight lines between, and the last line beyond.

    Attributes:
        rows: ascending from 1. ratios: time of a pass with so many rows, that of one row being 1.
        one: seconds of a pass with one row; 0.0 if nothing was measured.
    """

    rows: Sequence[int]
    ratios: Sequence[float]
    one: float = 0.0

    def of(self, rows: float) -> float:
        """c(rows)."""
        if rows <= 1 or len(self.rows) == 1:
            return 1.0
        right = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        (a, b), (low, high) = self.rows[right - 1 : right + 1], self.ratios[right - 1 : right + 1]
        return low + (high - low) * (rows - a) / (b - a)

    def __str__(self) -> str:
        return ", ".join(f"c({k}) = {c:.2f}" for k, c in zip(self.rows[1:], self.ratios[1:], strict=True))


ASSUMED = Cost((1, 4, 8, 16, 32, 64), (1.0, 1.6, 2.6, 4.5, 8.5, 16.5))
"""Before anything is measured; near what 4-bit weights cost on two cores of a CPU."""


@define
class Drag:
    """How much longer passes with guesses take in a conversation than what was measured apart says.

    A pass is timed from one proposal to the next, so sampling, commits and whatever else rows cost are in it.

    Attributes:
        plain: seconds of a pass of one row, lately. times: what c(k) is multiplied by.
        prompts: chunks of prompts that were read so far. Passes that read one say nothing of guesses.
    """

    plain: float = 0.0
    times: float = 1.0
    prompts: int = 0
    _seen: int = 0

    def note(self, rows: int, seconds: float, cost: Cost) -> None:
        """A pass of a single conversation; `cost` as it was measured."""
        if rows == 1:
            self._seen += 1
            known = self._seen > 1 and seconds < PAUSE * self.plain
            self.plain += LATELY * (seconds - self.plain) if known else 0.0
            self.plain = seconds if self._seen == 1 else self.plain
        elif self._seen >= ENOUGH and seconds < PAUSE * self.plain * cost.of(rows):
            found = seconds / (self.plain * cost.of(rows))
            self.times += LATELY * (min(max(found, 1.0), 3.0) - self.times)

    def fade(self) -> None:
        """A pass without guesses. It says nothing of their price, so in the end they are tried again."""
        self.times += FADE * (1.0 - self.times)

    def on(self, cost: Cost) -> Cost:
        """c(k) as it is in a conversation."""
        return Cost(cost.rows, (cost.ratios[0], *(c * self.times for c in cost.ratios[1:])), cost.one)


def linear(step: float) -> Cost:
    """Each further row costs the same share of the first."""
    return Cost((1, 2), (1.0, 1.0 + step))


_KNOWN: dict[tuple[Any, ...], Cost] = {}


def cost_of(compiled: Any) -> Cost:
    """c(k) of a compiled model: measured the first time, remembered for all like it."""
    # figures and where machine code came from say nothing about the speed
    facts = sorted((k, v) for k, v in compiled.facts().items() if k != "machine code")
    spec = compiled.model.text if hasattr(compiled, "model") else None
    key = (type(compiled), tuple(facts), spec and attrs.astuple(spec))
    if key not in _KNOWN:
        _KNOWN[key] = measure(compiled)
    return _KNOWN[key]


def measure(compiled: Any, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """Time passes of several sizes -> c(k). What a model with few positions cannot hold is left out."""
    session, start = compiled.session(KeepAll()), clock()
    best: dict[int, float] = {}
    try:
        compiled.step([Work(session=session, tokens=[0] * CONTEXT, logits=0)])
        session.commit()
        _timed(compiled, session, SIZES[0], clock)
        for turn in range(ROUNDS[1]):
            if turn >= ROUNDS[0] and clock() - start > SECONDS:
                break
            for size in SIZES:
                if size > SLOW[1] and best[1] > SLOW[0]:
                    break
                best[size] = min(_timed(compiled, session, size, clock), best.get(size, 1e9))
    except AndesError:
        if 1 not in best:  # not even one row behind the context: nothing to choose by
            return ASSUMED
    finally:
        session.close()
    sizes = sorted(best)
    # more rows never cost less: what looks so is noise
    ratios: list[float] = []
    for size in sizes:
        ratios.append(max(best[size] / best[1], ratios[-1] if ratios else 1.0))
    return Cost(tuple(sizes), tuple(ratios), best[1])


def _timed(compiled: Any, session: Any, rows: int, clock: Callable[[], float]) -> float:
    start = clock()
    compiled.step([Work(session=session, tokens=[0] * rows)])
    seconds = clock() - start
    session.rollback()
    return seconds
