"""A run as one HTML file: a table, bars with intervals, and the worst items with their pictures and boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from attrs import frozen

from andes_sdk.inputs.images import load_image

if TYPE_CHECKING:
    from .run import Outcome

WORST, SIDE = 12, 360
"""Items per task, and the longest side of their pictures in pixels."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; background: #fff;
  color: #1b1b1b } h1 { font-size: 1.5rem; overflow-wrap: anywhere } .wide { overflow-x: auto; margin: 0 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap } .items { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem } .item { border: 1px solid #ddd;
  padding: .6rem; overflow-wrap: anywhere; font-size: 13px } .item img { max-width: 100%; border: 1px solid #ddd;
  box-sizing: border-box } dl { margin: .4rem 0 } dt { color: #666 } dd { margin: 0 0 .4rem }
"""
TRUE, SAID = "#14883e", "#c62828"


@frozen
class Shown:
    """One item of the report: its row, and its pictures, encoded."""

    row: Mapping[str, Any]
    pictures: Sequence[bytes]


def worst_of(outcome: Outcome, count: int = WORST) -> list[Mapping[str, Any]]:
    """The rows with the lowest scores, in the order of the data; none that is wholly right."""
    ranked = sorted(outcome.rows, key=lambda row: row["score"])
    return [row for row in ranked[:count] if row["score"] < 1.0]


def page(model: str, outcomes: Sequence[Outcome], shown: Mapping[str, Sequence[Shown]]) -> str:
    """The whole file; nothing in it is taken from the network.

    Args:
        shown: task's name -> its worst items.
    """
    parts = [f"<h1>{escape(model)}</h1>", _table(outcomes), _bars(outcomes)]
    for outcome in outcomes:
        name = outcome.task.name
        parts += [f"<h2>{escape(outcome.task.title or name)}</h2>", _figures(outcome)]
        if shown.get(name):
            legend = f'; boxes: <b style="color:{TRUE}">true</b>, <b style="color:{SAID}">said</b>'
            told = legend if any(_boxes(one.row) for one in shown[name]) else ""
            parts += [f"<p>The {len(shown[name])} worst of {len(outcome.rows)} items{told}.</p>", '<div class="items">']
            parts += [*(_item(one) for one in shown[name]), "</div>"]
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{escape(model)}</title><style>{STYLE}</style>"
    return "\n".join([head, *parts])


def _table(outcomes: Sequence[Outcome]) -> str:
    heads = ("task", "measure", "score", "95 % interval", "n", "failed", "cut short", "seconds")
    rows = []
    for one in outcomes:
        main = one.main
        cells = (f"{main.value:.4f}", f"{main.low:.4f} – {main.high:.4f}", len(one.rows), one.failed, one.cut_short,
                 f"{one.seconds:.1f}")  # fmt: skip
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f"<tr><td>{escape(one.task.name)}</td><td>{escape(one.task.measure)}</td>{numbers}</tr>")
    return _rows(heads, 2, rows)


def _figures(outcome: Outcome) -> str:
    rows = [
        f'<tr><td>{escape(name)}</td><td class="n">{f.value:.4f}</td><td class="n">{f.low:.4f} – {f.high:.4f}</td></tr>'
        for name, f in outcome.figures.items()
    ]
    return _rows(("figure", "value", "95 % interval"), 1, rows)


def _rows(heads: Sequence[str], texts: int, rows: Sequence[str]) -> str:
    """A table whose first columns are texts, and the others numbers."""
    head = "".join(f"<th>{h}</th>" if n < texts else f'<th class="n">{h}</th>' for n, h in enumerate(heads))
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _bars(outcomes: Sequence[Outcome]) -> str:
    """One bar per task, with its interval; measures that are no shares are drawn as shares of their own upper end."""
    height, width = 26, 480
    left = 16 + 8 * max(len(one.task.name) for one in outcomes)  # a letter of 12 px is narrower than 8
    parts = []
    for number, one in enumerate(outcomes):
        main, y = one.main, number * height
        full = 1.0 if main.high <= 1.0 else main.high
        at = [left + width * min(1.0, max(0.0, value / full)) for value in (main.value, main.low, main.high)]
        middle = y + height / 2
        parts += [
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end" font-size="12">{escape(one.task.name)}</text>',
            f'<rect x="{left}" y="{y + 5}" width="{at[0] - left:.1f}" height="{height - 10}" fill="#7aa6d8"/>',
            f'<path d="M{at[1]:.1f} {middle}H{at[2]:.1f}M{at[1]:.1f} {middle - 5}v10M{at[2]:.1f} {middle - 5}v10" '
            'stroke="#1b1b1b" fill="none"/>',
            f'<text x="{max(at) + 8:.1f}" y="{middle + 4}" font-size="12">{main.value:.3f}</text>',
        ]
    size = f'width="{left + width + 70}" height="{height * len(outcomes)}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="scores">{"".join(parts)}</svg>'
    return f'<div class="wide">{svg}</div>'


def _item(one: Shown) -> str:
    row, boxes = one.row, _boxes(one.row)
    pictures = "".join(f'<img alt="" src="{_inline(picture, boxes)}">' for picture in one.pictures)
    told = {"question": row["question"], "truth": row["truth"], "said": row["said"] or "(nothing)"}
    if row["read"] != row["said"]:
        told["read"] = "(nothing)" if row["read"] in (None, "") else row["read"]
    if "errors" in row:
        told["why not"] = "; ".join(str(error.get("what")) for error in row["errors"])
    terms = "".join(f"<dt>{name}</dt><dd>{escape(_short(value))}</dd>" for name, value in told.items())
    return f'<div class="item">{pictures}<dl><dd><b>{escape(row["key"])}: {row["score"]:.2f}</b></dd>{terms}</dl></div>'


def _boxes(row: Mapping[str, Any]) -> list[tuple[Sequence[float], str]]:
    """The boxes of an item that can be drawn, in fractions, with their colours."""
    places = ((row["truth"], TRUE), (row["read"], SAID), (row["facts"].get("box"), TRUE))
    return [(box, colour) for box, colour in places if _is_box(box)]


def _short(value: Any) -> str:
    return ", ".join(f"{number:.3f}" for number in value) if _is_box(value) else str(value)[:600]


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(isinstance(v, int | float) for v in value)
    return numbers and all(-1 <= v <= 2 for v in value)


def _inline(picture: bytes, boxes: Sequence[tuple[Sequence[float], str]]) -> str:
    """A small JPEG with boxes (fractions of the sides) drawn on it, as a data URL."""
    from PIL import ImageDraw

    image = load_image(picture).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    draw = ImageDraw.Draw(image)
    for (x1, y1, x2, y2), colour in boxes:
        left, right = sorted((x1 * image.width, x2 * image.width))
        top, bottom = sorted((y1 * image.height, y2 * image.height))
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=colour, width=2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
