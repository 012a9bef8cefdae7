"""The quality report: `report.html`, `report.json`, and a contact sheet of screens with their boxes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from andes_andesui.elements import REASONS
from andes_andesui.tasks import TASKS
from andes_andesui.writing import SPLITS, Counts, sides
from andes_sdk.files import write_atomically, writing

SHEET = "contact.png"
THUMB = (300, 300)
COLUMNS = 6
COLOURS = {"text": "#d22", "control": "#06c", "icon": "#c0c", "repeated": "#999"}
"""Of boxes on the contact sheet."""

STYLE = """body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}
th{border-bottom:1px solid #aaa}td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}
i{display:inline-block;height:.8em;background:#58a}"""


def write_report(counts: Counts, shown: Iterable[dict[str, Any]], out: Path) -> None:
    """Write the report into a folder of screens.

    Args:
        shown: lines of the screens on the contact sheet.
    """
    sheet = contact_sheet(shown, out)
    files = {
        out / SHEET: _png(sheet),
        out / "report.json": json.dumps(counts.to_dict(), indent=2, ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        ),
        out / "report.html": page(counts).encode("utf-8", "backslashreplace"),
    }
    for path, content in files.items():
        with writing(path):
            write_atomically(path, content)


def contact_sheet(shown: Iterable[dict[str, Any]], out: Path) -> Image.Image:
    """Thumbnails in columns, each with the boxes of its elements."""
    thumbs = [thumb(screen, out) for screen in shown]
    lines = [thumbs[n : n + COLUMNS] for n in range(0, len(thumbs), COLUMNS)]
    tall = [max(picture.height for picture in line) + 8 for line in lines]
    sheet = Image.new("RGB", (COLUMNS * (THUMB[0] + 8), max(1, sum(tall))), "white")
    top = 0
    for line, height in zip(lines, tall, strict=True):
        for number, picture in enumerate(line):
            sheet.paste(picture, (number * (THUMB[0] + 8), top))
        top += height
    return sheet


def thumb(screen: dict[str, Any], out: Path) -> Image.Image:
    """A screen, smaller, with boxes: red for text, blue for controls, magenta for icons, grey where not unique."""
    with Image.open(out / screen["image"]) as file:
        picture = file.convert("RGB")
    whole = picture.width
    picture.thumbnail(THUMB)
    factor = picture.width / whole
    draw = ImageDraw.Draw(picture)
    for element in screen["elements"]:
        kind = "icon" if element["icon"] else "text" if element["role"] in ("text", "heading", "cell") else "control"
        colour = COLOURS[kind if element["unique"] else "repeated"]
        draw.rectangle([side * factor for side in element["box"]], outline=colour)
    return picture


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()


def page(counts: Counts) -> str:
    """The report as one page; the contact sheet lies beside it."""
    refused = sum(counts.refused.values())
    every = counts.elements + refused
    apps = sorted(counts.apps.items(), key=lambda item: -item[1]["elements"])
    parts = [
        f"<h1>{sum(counts.screens.values()):,} screens, {counts.elements:,} elements</h1>",
        f'<p><a href="{SHEET}"><img src="{SHEET}" alt="Screens with the boxes of their elements"></a></p>'
        "<p>Red: text. Blue: controls. Magenta: icons. Grey: another element is called the same.</p>",
        _table("Rows", ("task", *SPLITS), [(t, *(counts.tasks[s][t] for s in SPLITS)) for t in TASKS]),
        f"<p>{counts.new:,} of the grounding rows for tests ask for a text that no training screen shows.</p>",
        _table("Screens", ("split", "screens"), [(s, counts.screens[s]) for s in SPLITS]),
        _table("Views", ("size and theme", "screens"), counts.kinds.most_common()),
        _table(
            "Elements", ("role", "elements", "unique"),
            [(role, n, counts.unique[role]) for role, n in counts.roles.most_common()],
        ),
        _table(
            "Shorter side of boxes, in pixels", ("", "elements"), [(n, counts.sides[n]) for n in sides()], bars=True
        ),
        f"<p>{refused:,} of {every:,} elements were refused ({refused / max(every, 1):.1%}).</p>",
        _table(
            "Refused", ("reason", "meaning", "elements"),
            [(name, REASONS[name], n) for name, n in counts.refused.most_common()],
        ),
        _table("Duplicates", ("screens with the picture of an earlier one", ""), [(len(counts.duplicates), "")]),
        _table("Pages that failed", ("page", "why"), list(counts.failed.items())[:100]),
        _table(
            f"Applications: {len(apps)}, the 100 largest", ("application", "split", "screens", "elements"),
            [(n, "test" if c["test"] else "train", c["screens"], c["elements"]) for n, c in apps[:100]],
        ),
    ]  # fmt: skip
    return f'<!doctype html><meta charset="utf-8"><title>Screens</title><style>{STYLE}</style>{"".join(parts)}'


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], *, bars: bool = False) -> str:
    most = max([row[-1] for row in rows], default=1) if bars else 1
    body = ""
    for row in rows:
        cells = [f'<td class="n">{c:,}</td>' if isinstance(c, int) else f"<td>{escape(str(c))}</td>" for c in row]
        if bars:
            cells.append(f'<td><i style="width:{300 * row[-1] / max(most, 1):.0f}px"></i></td>')
        body += f"<tr>{''.join(cells)}</tr>"
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table>" if rows else ""
