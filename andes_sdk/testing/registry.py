"""Checks by kind: the core's, and those that other distributions bring (entry points of `hookspecs.CHECKS`).

Each module that brings checks states their number per kind in `COUNTS`, so that a check cannot vanish unseen.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.hookspecs import CHECKS, HOOKS
from andes_sdk.testing.require import Nonconformance

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.subject import Subject

COUNTS: dict[str, int] = {
    "general": 16,
    "modules": 5,
    "check": 1,
    "explain": 1,
    "event": 1,
    "vision_encoder": 17,
    "projector": 9,
    "language_model": 18,
    "tokenizer": 10,
    "cache_policy": 13,
    "decoder": 8,
    "modalities": 8,
    "compressors": 3,
    "backends": 14,
    "rewards": 5,
    "data_filters": 3,
    "benchmarks": 2,
    "exporters": 2,
}
"""Kind -> number of the core's checks."""

BROUGHT = {"training_stages": "andes-training", "formats": "andes-packing"}
"""Kind without checks in the core -> the distribution that brings them."""

DataLines = Sequence[Mapping[str, Any]]
"""Data lines: the class attribute `samples` of a plugin, or none for questions about pictures."""

Measure = Callable[["Pipeline", DataLines], Mapping[str, object]]
"""(pipeline, samples) -> what of it is measured -> value; it must change nothing."""

MODULES = (
    "general",
    "vision",
    "projector",
    "language",
    "positions",
    "text",
    "policy",
    "decoding",
    "together",
    "modality",
    "collections",
    "adapting",
    "exporting",
    "changing",
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
_MEASURES: dict[str, Measure] = {}


def check(kind: str, name: str) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Register a function of a `Subject` as a check."""

    def register(run: Callable[[Subject], None]) -> Callable[[Subject], None]:
        made = Check(kind, name, run)
        if made.id in _CHECKS and _CHECKS[made.id].run.__qualname__ != run.__qualname__:
            raise ValueError(f"two checks are named {made.id!r}")
        _CHECKS[made.id] = made
        return run

    return register


def measure(function: Measure) -> Measure:
    """Register what else `testing.probe` asks of a pipeline, beside its logits and an answer."""
    _MEASURES[function.__qualname__] = function
    return function


def measures() -> list[Measure]:
    """What `measure` registered, those of other distributions included."""
    counts()
    return list(_MEASURES.values())


def counts() -> dict[str, int]:
    """Kind -> number of checks, those of other distributions included; all of them are imported.

    Raises:
        PluginBroken: the checks of another distribution cannot be imported. RuntimeError: they are not counted.
    """
    for module in MODULES:
        importlib.import_module(f"andes_sdk.testing.checks.{module}")
    total = Counter(COUNTS)
    for name in extensions(CHECKS):
        brought = getattr(load_extension(CHECKS, name), "COUNTS", None)
        if not isinstance(brought, Mapping):
            raise RuntimeError(f"the checks {name!r} are not counted: write COUNTS = {{kind: number}} in their module")
        total.update(brought)
    return dict(total)


def checks_of(kinds: Iterable[str]) -> list[Check]:
    """The checks of these kinds, in the kit's order.

    A kind whose checks another distribution brings has one check that fails until it is installed.

    Raises:
        PluginBroken: the checks of another distribution cannot be imported.
        RuntimeError: a kind has not the number of checks that the `COUNTS` together state.
    """
    table = counts()
    found = {kind: [c for c in _CHECKS.values() if c.kind == kind] for kind in table}
    wrong = {kind: len(checks) for kind, checks in found.items() if len(checks) != table[kind]}
    unknown = ({c.kind for c in _CHECKS.values()} | set(table)) - {"general", *HOOKS.values()}
    if wrong or unknown:
        raise RuntimeError(f"the kit's checks do not match its table: {wrong or sorted(unknown)}, COUNTS says {table}")
    absent = {kind: [_absent(kind, distribution)] for kind, distribution in BROUGHT.items() if kind not in table}
    return [c for kind in kinds for c in {**found, **absent}[kind]]


def _absent(kind: str, distribution: str) -> Check:
    """A check that fails: what it stands for is not installed."""

    def run(subject: Subject) -> None:
        raise Nonconformance(f"nothing was checked: {distribution} brings these checks; pip install {distribution}")

    return Check(kind, "its checks are installed", run)
