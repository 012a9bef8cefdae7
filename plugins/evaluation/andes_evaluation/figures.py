"""From answered items to figures with 95 % intervals, and the difference of two runs.

The unit that is drawn is the cluster: the items of one picture, problem or circle. Sums over clusters are what figures
are made of, so a bootstrap is one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from andes_sdk.errors import InputError

if TYPE_CHECKING:
    from .items import Answered
    from .tasks.base import Task

DRAWS, AT_ONCE = 2000, 100
Z = 1.959964
"""Of the normal distribution, for 95 %."""


@frozen
class Figure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain data, rounded to what five digits can tell."""
        return {"value": round(self.value, 5), "low": round(self.low, 5), "high": round(self.high, 5)}


def clusters_of(task: Task, rows: Iterable[Answered]) -> dict[str, dict[str, float]]:
    """Cluster -> what it adds to the sums, in the order in which clusters appear."""
    grouped: dict[str, list[Answered]] = {}
    for row in rows:
        grouped.setdefault(row["cluster"], []).append(row)
    return {name: task.tally(cluster) for name, cluster in grouped.items()}


def table_of(clusters: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """(clusters, sums) in float64; a sum that a cluster does not add to is 0."""
    return np.array([[cluster.get(name, 0.0) for name in names] for cluster in clusters], dtype=np.float64)


def drawn(table: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """(draws, sums): each draw takes as many clusters as there are, with replacement (Efron 1979)."""
    random, count = np.random.default_rng(seed), len(table)
    parts = []
    for start in range(0, draws, AT_ONCE):
        weights = random.multinomial(count, np.full(count, 1 / count), size=min(AT_ONCE, draws - start))
        parts.append(weights.astype(np.float64) @ table)
    return np.concatenate(parts)


def figures_of(task: Task, rows: Sequence[Answered], *, seed: int = 0) -> dict[str, Figure]:
    """Figures of a task with their intervals, the main one first.

    A share of right answers, one per cluster, has Wilson's interval (Wilson 1927), which is sound for few items and at
    the ends. Any other figure has the 2.5 and 97.5 percentiles of a bootstrap.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("nothing was answered", who=task.name, fix="give data with rows, and a limit above 0")
    clusters = clusters_of(task, rows)
    names = sorted({name for cluster in clusters.values() for name in cluster})
    table = table_of(list(clusters.values()), names)
    sums = dict(zip(names, table.sum(0), strict=True))
    whole = task.figures(sums)
    spread = task.figures(dict(zip(names, drawn(table, seed).T, strict=True)))
    counted = len(clusters) == len(rows) and all(row["score"] in (0.0, 1.0) for row in rows)
    found = {}
    for name, value in whole.items():
        group = "" if name == task.measure else f"/{name}"
        right, n = (float(sums.get(f"{kind}{group}", 0.0)) for kind in ("score", "n"))
        if counted and n and math.isclose(float(value), right / n):
            found[name] = wilson(right, int(n))
            continue
        low, high = np.percentile(np.broadcast_to(spread[name], (DRAWS,)), (2.5, 97.5))
        found[name] = Figure(float(value), float(low), float(high))
    return found


def wilson(right: float, n: int) -> Figure:
    """A share of `n` with its score interval."""
    share = right / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n * n))
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half))


@frozen
class Difference:
    """Two runs of one task on the same items.

    Attributes:
        a, b: main figures, on the items that both answered. difference: b - a, with its interval.
        p: chance of a difference as large as this or larger if there were none, by the same draws; two-sided.
        agreement: share of items for which the rule read the same answer. better, worse: items whose score rose, fell.
        n: items in both. only_a, only_b: items that one run alone answered.
    """

    a: float
    b: float
    difference: Figure
    p: float
    agreement: float
    better: int
    worse: int
    n: int
    only_a: int
    only_b: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        names = ("better", "worse", "n", "only_a", "only_b")
        rates = {name: round(getattr(self, name), 5) for name in ("a", "b", "p", "agreement")}
        return {**rates, "difference": self.difference.to_dict(), **{name: getattr(self, name) for name in names}}


def compared(task: Task, one: Sequence[Answered], other: Sequence[Answered], *, seed: int = 0) -> Difference:
    """The paired bootstrap: each draw takes the same clusters of both runs (Koehn 2004).

    Raises:
        InputError: no item in both.
    """
    first, second = ({row["key"]: row for row in rows} for rows in (one, other))
    both = [key for key in first if key in second]
    if not both:
        raise InputError("the runs have no item in common", who=task.name, fix="compare runs on the same data")
    sides = [clusters_of(task, [rows[key] for key in both]) for rows in (first, second)]
    names = sorted({name for side in sides for sums in side.values() for name in sums})
    tables = [table_of([side[cluster] for cluster in sides[0]], names) for side in sides]
    mains, spreads = [], []
    for table in tables:
        mains.append(float(task.figures(dict(zip(names, table.sum(0), strict=True)))[task.measure]))
        sums = drawn(table, seed)  # one seed: the same clusters
        spreads.append(task.figures(dict(zip(names, sums.T, strict=True)))[task.measure])
    gaps = np.broadcast_to(spreads[1] - spreads[0], (DRAWS,))
    low, high = np.percentile(gaps, (2.5, 97.5))
    pairs = [(first[key], second[key]) for key in both]
    return Difference(
        a=mains[0],
        b=mains[1],
        difference=Figure(mains[1] - mains[0], float(low), float(high)),
        p=min(1.0, 2 * (1 + min(int((gaps <= 0).sum()), int((gaps >= 0).sum()))) / (1 + DRAWS)),
        agreement=sum(a["read"] == b["read"] for a, b in pairs) / len(pairs),
        better=sum(b["score"] > a["score"] for a, b in pairs),
        worse=sum(b["score"] < a["score"] for a, b in pairs),
        n=len(both),
        only_a=len(first) - len(both),
        only_b=len(second) - len(both),
    )
