"""Findings, costs and rounding errors of a model as one HTML page without scripts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .drawing import svg

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left}
.error{color:#b00020;font-weight:600}.warning{color:#9a6700}.heat td{border:1px solid #fff;text-align:center}"""

_KINDS = {"DOES NOT HOLD": "error"}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    body = "".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{head}</tr>{body}</table>'


def cell(text: object, kind: str = "") -> str:
    """A cell of plain text."""
    return f'<td class="{escape(kind)}">{escape(str(text))}</td>'


def heat(errors: Mapping[str, float]) -> str:
    """Relative error of each rounded matrix: a row for each layer, a column for each role."""
    grid: dict[str, dict[str, float]] = {}
    for name, error in errors.items():
        found = re.match(r"(?:model\.)?layers\.(\d+)\.(.+)\.weight$", name)
        layer, role = (found[1], found[2]) if found else ("", name.removesuffix(".weight"))
        grid.setdefault(layer, {})[role] = error
    roles = list(dict.fromkeys(role for row in grid.values() for role in row))
    most = max(errors.values(), default=1.0) or 1.0
    rows = []
    for layer, row in grid.items():
        cells = [cell(layer or "head")]
        for role in roles:
            if role not in row:
                cells.append(cell(""))
                continue
            light = 96 - 46 * row[role] / most
            cells.append(f'<td style="background:hsl(8 80% {light:.0f}%)">{row[role]:.2%}</td>')
        rows.append(cells)
    return table(["layer", *roles], rows, "heat")


def pictures(facts: Mapping[str, Any]) -> list[str]:
    """What a picture costs in each of its graphs, and what becomes of typical ones."""
    if not facts.get("pictures"):
        return []
    rows = [
        [
            cell(one["graph"]), cell(one["tokens"]), cell(one["patches"]), cell(f"{one['bytes'] / 1e6:,.2f}"),
            cell(f"{one['milliseconds']:.3f}"), cell(f"{one['millijoules']:.3g}"),
        ]
        for one in facts["pictures"]
    ]  # fmt: skip
    heads = ("graph", "tokens", "patches", "MB", "ms at least", "mJ")
    parts = ["<h2>One picture</h2>", table(heads, rows)]
    if facts["shapes"]:
        shapes = [
            [
                cell(one["picture"]), cell("x".join(map(str, one["size"]))), cell(one["budget"]),
                cell("x".join(map(str, one["seen"]))), cell(one["tokens"]), cell(f"vision_{one['graph']}"),
            ]
            for one in facts["shapes"]
        ]  # fmt: skip
        parts.append(table(("picture", "pixels", "budget of tokens", "seen as", "tokens", "graph"), shapes))
    return parts


def page(facts: Mapping[str, Any]) -> str:
    """What `andes lint npu` found, as HTML."""
    parts = [f"<h1>{escape(str(facts['model']))} on Dimensity 9500</h1>", "<h2>Findings</h2>"]
    found = [[cell(f["level"], f["level"]), *(cell(f[k]) for k in ("layer", "what", "fix"))] for f in facts["findings"]]
    parts.append(table(("", "where", "what", "do this"), found))
    if "what_if" in facts:
        parts.append(f"<h2>One token at {facts['bandwidth'] / 1e9:.0f} GB/s</h2>")
        rows = [
            [
                cell(r["what"]), cell(f"{r['bytes'] / 1e6:,.2f}"), cell(f"{r['weights'] / 1e6:,.2f}"),
                cell(f"{r['head'] / 1e6:,.2f}"), cell(f"{r['cache'] / 1e6:,.2f}"),
                cell(f"{r['milliseconds']:.3f}"), cell(f"{r['millijoules']:.3g}"), cell(f"{r['memory'] / 1e6:,.1f}"),
            ]
            for r in facts["what_if"]
        ]  # fmt: skip
        heads = ("what if", "MB a token", "body", "head", "cache", "ms at least", "mJ", "MB kept")
        parts.append(table(heads, rows))
        parts += pictures(facts)
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in facts["assumed"]) + "</ul>")
    if facts.get("graph"):
        parts += [
            "<h2>Graphs</h2>",
            "<p>Bytes are of all repetitions. Orange runs on the CPU.</p>",
            svg(facts["graph"]),
        ]
    if facts.get("errors"):
        parts += ["<h2>What rounding changes, of the magnitude of each matrix</h2>", heat(facts["errors"])]
    return _whole(parts)


def checked(file: str, lines: Sequence[Sequence[str]]) -> str:
    """What `andes deploy check` found, as HTML; lines of what, where, whether it holds, and the figure or why not."""
    rows = [
        [cell(what), cell(where), cell(holds, _KINDS.get(holds, "")), cell(value)]
        for what, where, holds, value in lines
    ]
    return _whole([f"<h1>{escape(file)}</h1>", table(("what", "", "", "figure, or why not"), rows)])


def _whole(parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>NPU</title><style>{STYLE}</style>{body}</html>\n'
    )
