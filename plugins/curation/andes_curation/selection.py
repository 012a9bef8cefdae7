"""The report of a curation: what was dropped and why, and how the kept samples differ from the baselines."""

from __future__ import annotations

import html
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_sdk.files import write_atomically, writing

EXAMPLES = 5
Sets = Mapping[str, Sequence[int]]
Described = Mapping[str, Mapping[int, Mapping[str, Any]]]


def write_report(
    out: Path,
    filters: Sequence[str],
    engine: str,
    sets: Sets,
    dropped: Mapping[int, tuple[str, str]],
    described: Described,
    lengths: Mapping[int, int],
    where: Callable[[int], str],
) -> dict[str, Any]:
    """`report.json` and `report.html` -> what the former holds.

    Args:
        filters, engine: names, as the recipe gives them.
        sets: "all", "kept", "random" and "length" -> indices of samples.
        dropped: index -> filter and reason. described: filter -> index -> facts. lengths: characters of answers.
    """
    report = {
        "filters": list(filters),
        "engine": engine,
        "samples": len(sets["all"]) + sum(name == "reading" for name, _ in dropped.values()),
        "kept": len(sets["kept"]),
        "dropped": _dropped(dropped, where),
        "sets": {name: _set_facts(indices, described, lengths) for name, indices in sets.items()},
    }
    for name, text in (
        ("report.json", json.dumps(report, indent=1, ensure_ascii=False)),
        ("report.html", _page(report)),
    ):
        with writing(out / name):
            write_atomically(out / name, text.encode())
    return report


def _dropped(dropped: Mapping[int, tuple[str, str]], where: Callable[[int], str]) -> list[dict[str, Any]]:
    counts = Counter(name for name, _ in dropped.values())
    found = []
    for name, count in counts.items():
        mine = [i for i in sorted(dropped) if dropped[i][0] == name]
        shown = [{"where": where(i), "reason": dropped[i][1]} for i in mine[:EXAMPLES]]
        found.append({"filter": name, "count": count, "examples": shown})
    return found


def _set_facts(indices: Sequence[int], described: Described, lengths: Mapping[int, int]) -> dict[str, Any]:
    """Number of samples, mean characters of their answers, and per filter the mean of every number it told.

    A filter knows only the samples that the ones before it kept, so each mean says of how many samples it is.
    """
    means = {}
    for name, facts in described.items():
        told = [facts[i] for i in indices if i in facts]
        keys = sorted({k for row in told for k, v in row.items() if isinstance(v, int | float)})
        for key in keys:
            values = [row[key] for row in told if isinstance(row.get(key), int | float)]
            means[f"{name}.{key}"] = {"mean": round(statistics.fmean(values), 4), "samples": len(values)}
    characters = statistics.fmean([lengths[i] for i in indices]) if indices else 0.0
    return {"samples": len(indices), "answer_characters": round(characters, 2), "means": means}


# ---------------------------------------------------------------- the page

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #3b6ea5; height: .7rem; display: inline-block; min-width: 1px }
small { color: #666 }
"""


def _page(report: Mapping[str, Any]) -> str:
    total = max(1, report["samples"])
    rows, left = [_step("all samples", total, total, "")], total
    for part in report["dropped"]:
        left -= part["count"]
        examples = "<br>".join(
            f"<small>{html.escape(e['where'])}: {html.escape(e['reason'])}</small>" for e in part["examples"]
        )
        rows.append(_step(f"after {part['filter']} (−{part['count']:,})", left, total, examples))
    keys = sorted({key for facts in report["sets"].values() for key in facts["means"]})
    head = "".join(f"<th>{html.escape(name)}</th>" for name in report["sets"])
    lines = [_line("samples", [f"{f['samples']:,}" for f in report["sets"].values()])]
    lines.append(
        _line("characters of the answers, mean", [f"{f['answer_characters']:,}" for f in report["sets"].values()])
    )
    lines += [_line(key, [_mean(f["means"].get(key)) for f in report["sets"].values()]) for key in keys]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Curation</title>'
        f"<style>{_STYLE}</style><h1>Curation</h1><h2>What was dropped</h2><table>{''.join(rows)}</table>"
        "<h2>What was kept, beside baselines of the same size</h2>"
        f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
        "<p>random: drawn by chance. length: those with the longest answers.</p></html>"
    )


def _step(name: str, left: int, total: int, examples: str) -> str:
    bar = f'<span class="bar" style="width:{200 * left / total:.0f}px"></span>'
    return f'<tr><td>{html.escape(name)}</td><td class="n">{left:,}</td><td>{bar}</td><td>{examples}</td></tr>'


def _line(name: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{html.escape(name)}</td>{''.join(f'<td class=n>{c}</td>' for c in cells)}</tr>"


def _mean(value: Mapping[str, Any] | None) -> str:
    return "–" if value is None else f"{value['mean']:,} <small>of {value['samples']:,}</small>"
