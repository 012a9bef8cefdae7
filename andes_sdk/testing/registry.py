"""Checks by kind. Their number per kind is fixed in `COUNTS`, so that a check cannot vanish unseen."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

COUNTS: dict[str, int] = {
    "general": 16,
    "check": 1,
    "explain": 1,
    "event": 1,
    "vision_encoder": 17,
    "projector": 9,
    "language_model": 18,
    "tokenizer": 10,
    "cache_policy": 10,
    "decoder": 7,
    "training_stages": 10,
    "compressors": 2,
    "backends": 10,
    "formats": 3,
    "rewards": 2,
    "data_filters": 3,
    "benchmarks": 2,
    "exporters": 2,
}
"""Kind -> number of checks."""

MODULES = (
    "general",
    "vision",
    "projector",
    "language",
    "positions",
    "text",
    "policy",
    "decoding",
    "training",
    "collections",
    "adapting",
    "exporting",
)


@frozen
class Check:
    """One property that plugins of a kind must have.

    Attributes:
        kind: "general", or a value of `andes_sdk.hookspecs.HOOKS`.
        name: the property as a sentence.
        run: raises if a plugin lacks it.
    """

    kind: str
    name: str
    run: Callable[[Subject], None]

    @property
    def id(self) -> str:
        """`kind: name`; names the check in reports and in expected failures."""
        return f"{self.kind}: {self.name}"


@frozen(kw_only=True)
class CheckResult:
    """What came of a check.

    Attributes:
        status: "passed", "failed" or "not applicable".
        reason: why it failed or does not apply; empty if it passed.
        seconds: how long it took.
    """

    id: str
    kind: str
    status: str
    reason: str
    seconds: float


_CHECKS: dict[str, Check] = {}


def check(kind: str, name: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function of a `Subject` as a check."""

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        made = Check(kind, name, run)
        if made.id in _CHECKS and _CHECKS[made.id].run.__qualname__ != run.__qualname__:
            raise ValueError(f"two checks are named {made.id!r}")
        _CHECKS[made.id] = made
        return run

    return register


def checks_of(kinds: Iterable[str]) -> list[Check]:
    """The checks of these kinds, in the kit's order.

    Raises:
        RuntimeError: a kind has not the number of checks that `COUNTS` states.
    """
    for module in MODULES:
        importlib.import_module(f"andes_sdk.testing.checks.{module}")
    found = {kind: [c for c in _CHECKS.values() if c.kind == kind] for kind in COUNTS}
    wrong = {kind: len(checks) for kind, checks in found.items() if len(checks) != COUNTS[kind]}
    unknown = {c.kind for c in _CHECKS.values()} - set(COUNTS)
    if wrong or unknown:
        raise RuntimeError(f"the kit's checks do not match its table: {wrong or sorted(unknown)}, COUNTS says {COUNTS}")
    return [c for kind in kinds for c in found[kind]]
