"""The pictures of the documentation, made from the code and from measured figures.

    python docs/pictures/make.py                # all of them
    python docs/pictures/make.py tokens speed   # some

Each has a background of its own, so that it can be read on a dark and on a light page.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAPER, INK, GREY, LINE = "#fbfbf8", "#1f2933", "#5b6875", "#9aa5b1"
SLOT, CORE = ("#d5f0ec", "#12807a"), ("#e8ebef", "#5b6875")
FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""


# ---------------------------------------------------------------- drawing


def svg(width: int, height: int, title: str, body: Sequence[str]) -> str:
    """A picture on a card of its own."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" {FONT}>'
    arrow = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>'
    )
    card = f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>'
    return "\n".join([head, f"<title>{title}</title>", arrow, card, *body, "</svg>\n"])


def text(
    x: float, y: float, words: str, *, size: int = 14, fill: str = INK, anchor: str = "middle", more: str = ""
) -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" {more}>{words}</text>'


def box(x: int, y: int, w: int, h: int, name: str, owner: str, colours: tuple[str, str]) -> str:
    """A part: its name, and below it who brings it."""
    fill, edge = colours
    middle, centre = x + w / 2, y + h / 2
    lines = [
        f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="8" fill="{fill}" stroke="{edge}" stroke-width="1.5"/>',
        text(middle, centre - 3, name, more='font-weight="600"'),
        text(middle, centre + 15, owner, size=12, fill=GREY),
    ]
    return "\n".join(lines)


def pill(x: int, y: int, w: int, h: int, name: str) -> str:
    """What goes in or comes out."""
    shape = f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{h / 2}" fill="white" stroke="{LINE}"/>'
    return shape + text(x + w / 2, y + h / 2 + 5, name)


def arrow(x1: int, y1: int, x2: int, y2: int, label: str = "", *, both: bool = False, beside: bool = False) -> str:
    """An arrow, with what travels along it above it, or to its right."""
    start = 'marker-start="url(#tip)"' if both else ""
    line = f'<path d="M{x1} {y1}L{x2} {y2}" stroke="{GREY}" stroke-width="1.5" marker-end="url(#tip)" {start}/>'
    x, y, anchor = (x1 + 8, (y1 + y2) / 2 + 4, "start") if beside else ((x1 + x2) / 2, y1 - 8, "middle")
    return line + (text(x, y, label, size=12, fill=GREY, anchor=anchor) if label else "")


# ---------------------------------------------------------------- the pictures


def pipeline() -> str:
    """The parts of a pipeline and what travels between them."""
    dashed = f'fill="none" stroke="{LINE}" stroke-dasharray="5 4"'
    body = [
        f'<rect x="372" y="34" width="578" height="340" rx="10" {dashed}/>',
        text(
            386,
            364,
            "backend: computes what is inside (torch is built in; numba is a plugin)",
            size=12,
            fill=GREY,
            anchor="start",
        ),
        pill(20, 62, 100, 48, "picture"),
        arrow(120, 86, 160, 86),
        box(160, 60, 130, 52, "preprocessing", "built in", CORE),
        arrow(290, 86, 395, 86, "patches"),
        box(395, 60, 130, 52, "vision encoder", "aimv2, siglip2", SLOT),
        arrow(525, 86, 610, 86, "features"),
        box(610, 60, 110, 52, "projector", "mlp", SLOT),
        arrow(720, 86, 800, 86, "rows"),
        pill(20, 182, 100, 48, "messages"),
        arrow(120, 206, 160, 206),
        box(160, 180, 130, 52, "tokenizer", "qwen3, gguf", SLOT),
        arrow(290, 206, 800, 206, "token ids"),
        box(800, 60, 140, 172, "language model", "qwen3, gguf", SLOT),
        arrow(940, 146, 1030, 146),
        text(988, 138, "logits", size=12, fill=GREY),
        box(1030, 120, 110, 52, "engine", "built in", CORE),
        arrow(1140, 146, 1175, 146),
        pill(1175, 122, 80, 48, "answer"),
        arrow(870, 232, 870, 290, both=True),
        text(862, 266, "attend(q, k, v)", size=12, fill=GREY, anchor="end"),
        box(800, 290, 140, 52, "session", "KV rows, built in", CORE),
        box(160, 290, 130, 52, "cache policy", "keep-all, or yours", SLOT),
        arrow(290, 316, 800, 316, "which rows stay"),
        box(1012, 290, 146, 52, "decoder", "one by one, or yours", SLOT),
        arrow(1085, 290, 1085, 172, "guesses", beside=True),
        f'<rect x="20" y="396" width="16" height="16" rx="4" fill="{SLOT[0]}" stroke="{SLOT[1]}"/>',
        text(44, 409, "slot: exactly one plugin owns it", size=13, anchor="start"),
        f'<rect x="290" y="396" width="16" height="16" rx="4" fill="{CORE[0]}" stroke="{CORE[1]}"/>',
        text(314, 409, "core", size=13, anchor="start"),
        text(380, 409, "arrows: the seams, plain tensors and small protocols", size=13, fill=GREY, anchor="start"),
    ]
    return svg(1270, 430, "The parts of a pipeline and what travels between them", body)


def terminal() -> str:
    """The first half of `make demo`, as the terminal shows it: the parts, then questions about held-out pictures."""
    sys.path.insert(0, str(ROOT / "examples"))
    import demo
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console

    class Timeless(Console):
        """Prints all but the times, which depend on the machine and on what else it does."""

        def print(self, *objects: Any, **options: Any) -> None:
            """As rich's."""
            if not str(objects[0] if objects else "").startswith("medians"):
                super().print(*objects, **options)

    os.chdir(ROOT)
    demo.HERE = Path("examples")
    console = Timeless(record=True, width=112, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    made = demo.assemble()
    console.print(made.explain())
    demo.ask_held_out(made, console)
    shape = re.sub(
        r"@font-face \{\{.*?\}\}\s*\}?", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL
    )  # no fonts from the network
    return console.export_svg(title="make demo", code_format=shape, unique_id="demo")


def scene() -> Image.Image:
    """A picture of 200 x 120: a house on a hill."""
    image = Image.new("RGB", (200, 120), "#9fd3f2")
    draw = ImageDraw.Draw(image)
    draw.ellipse((150, 10, 180, 40), fill="#ffd447")
    draw.ellipse((-60, 78, 280, 240), fill="#6aa84f")
    draw.rectangle((60, 50, 120, 95), fill="#c0392b")
    draw.polygon([(52, 52), (90, 22), (128, 52)], fill="#5d4037")
    draw.rectangle((84, 70, 98, 95), fill="#f5f0e6")
    return image


def tokens() -> str:
    """What becomes of a picture: its canvas, patches, and the rows that the language model reads."""
    from andes_sdk.inputs.preprocess import Preprocessor

    pre, picture, scale = Preprocessor(patch_size=14, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)), scene(), 2.5
    buffer = io.BytesIO()
    canvas = pre.canvas(picture)
    canvas.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    w, h = canvas.size
    left, top, wide, high = 30, 78, w * scale, h * scale
    lines = []
    for step, width, opacity in ((14, 0.7, 0.55), (28, 2.2, 0.95)):
        path = "".join(f"M{left + x * scale} {top}v{high}" for x in range(0, w + 1, step))
        path += "".join(f"M{left} {top + y * scale}h{wide}" for y in range(0, h + 1, step))
        lines.append(f'<path d="{path}" stroke="white" stroke-width="{width}" stroke-opacity="{opacity}" fill="none"/>')
    columns, rows, count = w // 28, h // 28, pre.tokens(*picture.size)
    numbers = [
        text(left + (28 * c + 14) * scale, top + (28 * r + 14) * scale + 5, str(r * columns + c + 1), fill="white",
             more='font-weight="700" stroke="#1f2933" stroke-width="3" paint-order="stroke"')
        for r in range(rows)
        for c in range(columns)
    ]  # fmt: skip
    x = left + wide + 30
    notes = [
        ("picture", f"{picture.width} × {picture.height} pixels"),
        ("canvas", f"{w} × {h}: whole blocks of 28 × 28;"),
        ("", "the bars hold the mean colour"),
        ("thin lines", f"patches of 14 × 14: {w // 14} × {h // 14} = {w * h // 196},"),
        ("", "rows of the vision encoder"),
        ("thick lines", f"blocks of 2 × 2 patches: {columns} × {rows} = {count},"),
        ("", "rows of the language model"),
        ("order", "the numbers; left to right, then down"),
    ]
    said, y = [], top
    for name, what in notes:
        y += 44 if name else 22
        said += [text(x, y, name, anchor="start", more='font-weight="600"'), text(x + 100, y, what, anchor="start")]
    title = f"A picture of {picture.width} × {picture.height} becomes {count} rows of the language model"
    image = f'<image x="{left}" y="{top}" width="{wide}" height="{high}" href="data:image/png;base64,{data}"/>'
    head = text(left, 48, title, size=19, anchor="start", more='font-weight="600"')
    return svg(1010, int(top + high + 30), title, [head, image, *lines, *numbers, *said])


def speed() -> str:
    """Tokens per second by engine and format, from docs/results/decode.json; whiskers are the range of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    result = json.loads((ROOT / "docs" / "results" / "decode.json").read_text(encoding="utf-8"))
    rows = [r for r in result["rows"] if r["kv"] == "f16" and r["head"] == r["weights"]]
    rows.sort(key=lambda r: r["decode_64"])
    colours = {"numba": "#12807a", "llama.cpp": "#d08a2e", "transformers": "#7a869a"}
    pyplot.rcParams.update({"svg.hashsalt": "andes", "font.size": 10})
    figure, axes = pyplot.subplots(figsize=(8.4, 5), layout="constrained", facecolor=PAPER)
    axes.set_facecolor(PAPER)
    names = [f"{r['weights']}  ({r['bpw']:.1f} bits)" for r in rows]
    values = [r["decode_64"] for r in rows]
    low = [v - r["range_64"][0] for v, r in zip(values, rows, strict=True)]
    high = [r["range_64"][1] - v for v, r in zip(values, rows, strict=True)]
    bars = axes.barh(names, values, color=[colours[r["engine"]] for r in rows], xerr=(low, high), ecolor=INK, capsize=2)
    tops = [r["range_64"][1] for r in rows]
    for bar, value, end in zip(bars, values, tops, strict=True):
        axes.text(end + 4, bar.get_y() + bar.get_height() / 2, f"{value:.0f}", va="center", color=INK)
    axes.set(xlabel="decoded tokens per second; Qwen3-0.6B shape, two CPU cores", xlim=(0, max(tops) + 30))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=[Patch(color=c, label=n) for n, c in colours.items()], frameon=False, loc="lower right")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Title": "Decoded tokens per second"})
    return buffer.getvalue()


PICTURES: dict[str, Callable[[], str]] = {"pipeline": pipeline, "demo": terminal, "tokens": tokens, "speed": speed}


def main() -> None:
    """Make the pictures that the command names."""
    for name in sys.argv[1:] or PICTURES:
        made = "\n".join(line.rstrip() for line in PICTURES[name]().splitlines()) + "\n"
        (HERE / f"{name}.svg").write_text(made, encoding="utf-8")
        print(f"{name}.svg: {len(made.encode()):,} bytes")


if __name__ == "__main__":
    main()
