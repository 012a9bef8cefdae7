"""Samples as one self-contained HTML page: pictures with their boxes drawn on them, and the text."""

from __future__ import annotations

import base64
import io
import random
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from andes_sdk.files import write_atomically, writing
from andes_training.data.bad import BadSample
from andes_training.data.boxes import END, SCALE, START, Box, find_boxes
from andes_training.data.inspection import inspect
from andes_training.data.samples import whole

if TYPE_CHECKING:
    from andes_training.data.samples import Samples

LARGEST = 768
"""Longer side of a picture on the page, in pixels."""
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
article { border: 1px solid #ccc; border-radius: 8px; padding: 1rem; margin: 1rem 0; }
h2 { font-size: 0.9rem; font-family: monospace; margin: 0 0 0.5rem; overflow-wrap: anywhere; }
figure { position: relative; display: inline-block; margin: 0.25rem 0; }
figure img { display: block; max-width: 100%; } figure svg { position: absolute; inset: 0; width: 100%; height: 100%; }
p { margin: 0.25rem 0; white-space: pre-wrap; overflow-wrap: anywhere; } b { color: #666; }
.bad { background: #fdecea; } mark { color: #fff; border-radius: 3px; padding: 0 0.3em; font-size: 0.85em; }
"""
_SPAN = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)


def write_page(samples: Samples, out: Path, *, count: int = 20, seed: int = 0) -> int:
    """Write a page of `count` samples drawn with `seed`, in the order of the files -> how many it shows.

    A sample that cannot be used is shown with what is wrong with it. A box is drawn on the picture before it.

    Raises:
        TrainingError: `out` cannot be written.
    """
    samples = whole(samples)
    chosen = sorted(random.Random(seed).sample(range(len(samples)), min(count, len(samples))))
    body = "\n".join(_article(samples, index) for index in chosen)
    title = escape(f"{len(chosen)} of {len(samples)} samples")
    page = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>\n'
    with writing(out):
        write_atomically(out, f"{page}<h1>{title}</h1>\n{body}\n</html>\n".encode(errors="replace"))
    return len(chosen)


def _article(samples: Samples, index: int) -> str:
    head = f"<h2>{escape(samples.where(index))}</h2>"
    try:
        sample = samples[index]
        conversations = inspect(sample)
    except BadSample as error:
        return f'<article class="bad">{head}<p>{escape(str(error))}</p></article>'
    drawn: set[int] = set()
    parts = [_conversation(conversation, drawn) for conversation in conversations]
    return f"<article>{head}{'<hr>'.join(parts)}</article>"


def _conversation(messages: list[Any], drawn: set[int]) -> str:
    """Text in order; every picture once, with the boxes that the text after it speaks of."""
    texts: list[str] = []
    boxes: dict[int, list[Box]] = {}
    pictures: dict[int, Image.Image] = {}
    place: dict[int, int] = {}
    current = 0
    for message in messages:
        content: list[dict[str, Any]] = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        texts.append(f"<p><b>{escape(message['role'])}</b> ")
        for part in content:
            if part["type"] == "text":
                found = find_boxes(part["text"])
                known = boxes.setdefault(current, [])
                texts.append(_marked(part["text"], len(known)))
                known += found
            else:
                picture: Image.Image = part["image"]
                current = id(picture)
                pictures[current] = picture
                place[current] = len(texts)
                texts.append("")
        texts.append("</p>")
    for key, image in pictures.items():
        if key not in drawn or boxes.get(key):  # conversations of a sample share their pictures
            texts[place[key]] = _figure(image, boxes.get(key, []))
            drawn.add(key)
    return "".join(texts)


def _marked(text: str, first: int) -> str:
    """Escaped text, each box as its number in the box's colour."""
    parts, number = [], first
    for index, part in enumerate(re.split(f"({_SPAN.pattern})", text, flags=re.DOTALL)):
        if index % 2:
            shown = escape(part[len(START) : -len(END)])
            parts.append(f'<mark style="background:{COLOURS[number % len(COLOURS)]}">{number + 1}: {shown}</mark>')
            number += 1
        else:
            parts.append(escape(part))
    return "".join(parts)


def _figure(image: Image.Image, boxes: list[Box]) -> str:
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    shapes = "".join(_shape(number, box) for number, box in enumerate(boxes))
    overlay = f'<svg viewBox="0 0 {SCALE} {SCALE}" preserveAspectRatio="none">{shapes}</svg>' if boxes else ""
    size = f"{image.width}x{image.height}"
    return f'</p><figure title="{size}"><img src="{source}" alt="{size}">{overlay}</figure><p>'


def _shape(number: int, box: Box) -> str:
    x1, y1, x2, y2 = box
    colour = COLOURS[number % len(COLOURS)]
    frame = f'fill="none" stroke="{colour}" stroke-width="3" vector-effect="non-scaling-stroke"'
    name = f"<title>{number + 1}</title>"
    if (x1, y1) == (x2, y2):
        return f'<circle cx="{x1}" cy="{y1}" r="8" {frame}>{name}</circle>'
    return f'<rect x="{x1}" y="{y1}" width="{x2 - x1}" height="{y2 - y1}" {frame}>{name}</rect>'
