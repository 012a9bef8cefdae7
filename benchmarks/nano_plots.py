"""Draw what docs/results/nano.json holds, which benchmarks/nano.py measured.

    python benchmarks/nano_plots.py       # docs/results/nano.svg and nano_stages.svg

`nano.svg` shows the shipped model's scores beside noise for pictures and what can be had without looking;
`nano_stages.svg` the scores after each stage of training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results"
SCALE = "share right; of /error: share of characters wrong"


def scores_of(run: dict[str, Any], of: str = "scores") -> dict[str, dict[str, Any]]:
    """The figures of a run that have questions."""
    return {name: score for name, score in run[of].items() if score["n"]}


def model(run: dict[str, Any], path: Path) -> None:
    """One model's scores, noise and baselines."""
    scores, noise = scores_of(run), scores_of(run, "blind_scores")
    rows = range(len(scores))
    values = [s["value"] for s in scores.values()]
    below = [s["value"] - s["ci"][0] for s in scores.values()]
    above = [s["ci"][1] - s["value"] for s in scores.values()]
    best = [(min if n.endswith("/error") else max)(run["baselines"][n].values()) for n in scores]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(scores) + 1), layout="constrained")
    axes.barh(rows, values, xerr=[below, above], color="#4477aa", ecolor="#222222", capsize=2, label="this model, 95 %")
    axes.scatter(best, rows, marker="|", s=160, color="#ee6677", zorder=3, label="best without looking")
    blind = [(noise[name]["value"], row) for row, name in enumerate(scores) if name in noise]
    axes.scatter(*zip(*blind, strict=True), marker="x", color="#ccbb44", zorder=3, label="noise for the picture")
    axes.set_yticks(rows, [f"{name} (lower is better)" if name.endswith("/error") else name for name in scores])
    axes.set(xlim=(0, 1), xlabel=SCALE)
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    figure.savefig(path)


def stages(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Every score after each stage."""
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name in scores_of(list(runs.values())[-1]):
        found = [(n, run["scores"][name]["value"]) for n, run in enumerate(runs.values()) if name in run["scores"]]
        axes.plot(*zip(*found, strict=True), marker="o", label=name)
    axes.set_xticks(range(len(runs)), list(runs))
    axes.set(ylim=(0, 1), ylabel=SCALE)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path)


def main() -> None:
    runs = json.loads((FOLDER / "nano.json").read_text(encoding="utf-8"))
    by_stage = {name: run for name, run in runs.items() if name[0].isdigit()}
    model(runs.get("andes-nano") or list(by_stage.values())[-1], FOLDER / "nano.svg")
    stages(by_stage, FOLDER / "nano_stages.svg")


if __name__ == "__main__":
    main()
