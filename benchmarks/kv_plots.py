"""Plots of what a model still finds behind the rows that cache policies keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def curves(budgets: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Lines: facts found against the share kept, one line a policy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.5, 3.4))
    names = dict.fromkeys(name for told in budgets.values() for name in told)
    for name in names:
        points = [(float(share), told[name]) for share, told in budgets.items() if name in told]
        if len(points) == 1:
            axis.axhline(points[0][1], color="black", linewidth=0.8, linestyle="--", label=name)
        else:
            axis.plot(*zip(*points, strict=True), "o-", label=name)
    axis.set_xlabel("share of rows kept; int8 keeps twice as many")
    axis.set_ylabel("facts found, %")
    axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def draw(kinds: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars: policies by score, for both ways of asking."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.2), sharey=True, squeeze=False)
    for axis, (kind, told) in zip(axes[0], kinds.items(), strict=True):
        axis.bar(list(told), [one["score"] for one in told.values()], color="#4477aa")
        axis.set_title(f"question {kind}")
        axis.tick_params(axis="x", rotation=45)
    axes[0][0].set_ylabel("facts found, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
