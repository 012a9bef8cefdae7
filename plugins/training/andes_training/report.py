"""One HTML file about a run, from its `metrics.jsonl`: a table of stages, and curves as inline SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from andes_sdk.errors import TrainingError
from andes_sdk.files import Journal, write_atomically, writing
from andes_training.progress import METRICS

CURVES = {
    "loss": "loss",
    "rate_factor": "learning rate, share of the highest",
    "gradient_norm": "gradient norm before clipping",
    "speed": "supervised tokens per second",
}
"""Key of a step -> title of its curve; a stage's own figures follow."""

POINTS = 400
"""Points of a curve at most; longer runs are averaged."""

PLAIN = frozenset({"index", "stage", "step", "tokens", "samples", "seconds"})
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ccc}"
    "td:first-child,th:first-child{text-align:left}"
    "figure{display:inline-block;margin:.5em}svg{max-width:100%;height:auto}"
)

Figures = Mapping[str, Any]
"""One line of the metrics: what a step told, by name."""


def need_matplotlib() -> None:
    """Raise TrainingError unless matplotlib, which draws the curves, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise TrainingError(
            "a report needs matplotlib", who="report", why=str(error), fix="pip install 'andes-training[report]'"
        ) from None


def write_report(folder: Path) -> Path:
    """Read `folder/metrics.jsonl` and write `folder/report.html`.

    Raises:
        TrainingError: there are no metrics, matplotlib is not installed, or the file cannot be written.
    """
    need_matplotlib()
    stages = _stages(folder / METRICS)
    parts = [f"<h1>{escape(folder.resolve().name)}</h1>", _table(stages)]
    for rows in stages:
        parts.append(f"<h2>{escape(_title(rows))}</h2>")
        found = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
        own = {key: key for key in sorted(found - PLAIN - CURVES.keys())}
        parts += [_figure(rows, key, title) for key, title in {**CURVES, **own}.items()]
    head = f'<!doctype html><meta charset="utf-8"><title>{escape(folder.resolve().name)}</title><style>{STYLE}</style>'
    path = folder / "report.html"
    with writing(path):
        write_atomically(path, "\n".join([head, *parts]).encode())
    return path


def _stages(path: Path) -> list[list[Figures]]:
    """Steps by stage of the recipe; a torn last line, as a run in progress may show, is left out."""
    if not path.is_file():
        raise TrainingError("no metrics of a run", who=str(path), fix="give its --out folder")
    stages: dict[int, list[Figures]] = {}
    for row in Journal(path).rows(_written):
        seconds = row.get("seconds") or math.nan
        stages.setdefault(row["index"], []).append({**row, "speed": row.get("tokens", 0) / seconds})
    if not stages:
        raise TrainingError("holds no step", who=str(path), fix="wait for the first one")
    return [stages[index] for index in sorted(stages)]


def _written(row: Any) -> bool:
    """True for a row of metrics. Raises LookupError, TypeError: it is none."""
    numbers = {key: row[key] for key in ("index", "step", "loss", "tokens", "seconds")}
    wrong = [key for key, value in numbers.items() if type(value) not in (int, float)]
    if wrong or type(row["index"]) is not int or type(row["step"]) is not int or not isinstance(row["stage"], str):
        raise TypeError(f"no metrics of a step: {', '.join(wrong) or 'index, step or stage'}")
    return True


def _title(rows: Sequence[Figures]) -> str:
    return f"{rows[0]['index'] + 1}. {rows[0]['stage']}"


def _table(stages: Sequence[Sequence[Figures]]) -> str:
    heads = ("stage", "steps", "first loss", "last loss", "supervised tokens", "tokens/s, median", "minutes")
    lines = []
    for rows in stages:
        cells = (
            _title(rows),
            f"{rows[-1]['step']:,}",
            f"{rows[0]['loss']:.4f}",
            f"{rows[-1]['loss']:.4f}",
            f"{sum(r['tokens'] for r in rows):,}",
            f"{median(r['speed'] for r in rows):,.0f}",
            f"{sum(r['seconds'] for r in rows) / 60:.1f}",
        )
        lines.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    return "<table><tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>" + "".join(lines) + "</table>"


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: means of neighbours."""
    count = min(POINTS, len(points))
    edges = [i * len(points) // count for i in range(count + 1)] if count else []
    groups = [points[a:b] for a, b in pairwise(edges)]
    return [(fmean(x for x, _ in g), fmean(y for _, y in g)) for g in groups]


def _figure(rows: Sequence[Figures], key: str, title: str) -> str:
    """One curve as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    points = _thinned([(r["step"], float(r[key])) for r in rows if isinstance(r.get(key), int | float)])
    # text as text, and ids that do not differ from run to run
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "andes"}):
        figure = Figure(figsize=(5.6, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=1.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"
