"""Pages of text drawn with Pillow: where every character and every element stands is known."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from attrs import define, field
from PIL import Image, ImageDraw, ImageFont
from words import phrase

FONTS = (
    "dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans-Bold.ttf", "dejavu/DejaVuSerif.ttf", "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Regular.ttf", "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSerif-Regular.ttf", "liberation/LiberationSansNarrow-Regular.ttf",
    "noto/NotoSans-Regular.ttf", "noto/NotoSans-Bold.ttf", "noto/NotoSans-Medium.ttf", "noto/NotoSerif-Regular.ttf",
    "noto/NotoSans-Light.ttf", "noto/NotoSansDisplay-Regular.ttf", "noto/NotoSansMono-Regular.ttf",
)  # fmt: skip
ROOT = Path("/usr/share/fonts/truetype")


@define
class Element:
    """Something with a text, at a box in pixels (left, top, right, bottom)."""

    text: str
    box: tuple[float, float, float, float]


@define
class Page:
    """A picture, its elements, and its characters with their centres in pixels."""

    image: Image.Image
    elements: list[Element] = field(factory=list)
    glyphs: list[tuple[str, float, float]] = field(factory=list)

    def shares(self) -> list[list[object]]:
        """The glyphs as a data line holds them."""
        w, h = self.image.size
        return [[c, round(x / w, 4), round(y / h, 4)] for c, x, y in self.glyphs if 0 <= x < w and 0 <= y < h]


@cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at a size in pixels."""
    return ImageFont.truetype(str(ROOT / name), size)


@cache
def fonts() -> tuple[str, ...]:
    """Those of `FONTS` that are installed."""
    found = tuple(name for name in FONTS if (ROOT / name).is_file())
    if not found:
        raise SystemExit("no fonts: apt-get install fonts-dejavu fonts-liberation fonts-noto-core")
    return found


def colour(rng: random.Random, light: bool) -> tuple[int, int, int]:
    """A light or a dark colour."""
    low, high = (190, 255) if light else (0, 110)
    grey = rng.random() < 0.5
    first = rng.randint(low, high)
    return (first,) * 3 if grey else tuple(rng.randint(low, high) for _ in range(3))  # type: ignore[return-value]


def write(
    page: Page, draw: ImageDraw.ImageDraw, x: float, y: float, text: str, face: ImageFont.FreeTypeFont, ink: object
) -> tuple[float, float, float, float]:
    """Write a line and note its characters -> its box."""
    draw.text((x, y), text, font=face, fill=ink)  # type: ignore[arg-type]
    ascent, descent = face.getmetrics()
    middle = y + ascent - 0.35 * face.size
    before = 0.0
    for n, character in enumerate(text, 1):
        after = face.getlength(text[:n])
        if character != " ":
            page.glyphs.append((character, x + (before + after) / 2, middle))
        before = after
    return x, y, x + before, y + ascent + descent


def dense(rng: random.Random, split: str, width: int, height: int) -> Page:
    """A page full of lines in one to three columns, or of boxes with texts."""
    light = rng.random() < 0.7
    page = Page(Image.new("RGB", (width, height), colour(rng, light)))
    draw = ImageDraw.Draw(page.image)
    y = float(rng.randint(0, 12))
    columns = rng.choice((1, 1, 2, 3))
    while y < height - 12:
        face = font(rng.choice(fonts()), rng.choice((10, 11, 12, 12, 13, 13, 14, 14, 15, 16, 16, 18, 20, 24)))
        line = sum(face.getmetrics())
        for column in range(columns):
            x = column * width / columns + rng.randint(2, 20)
            end = (column + 1) * width / columns
            text, ink = phrase(rng, split, 6 if columns == 1 else 2), colour(rng, not light)
            while text and x + face.getlength(text) > end:
                text = text[: -max(1, len(text) // 8)].rstrip()
            if not text or rng.random() < 0.12:
                continue
            if rng.random() < 0.2:
                fill = colour(rng, light)
                draw.rounded_rectangle(
                    (x - 5, y - 2, x + face.getlength(text) + 5, y + line + 2), rng.randint(0, 8), fill=fill,
                    outline=ink if rng.random() < 0.5 else None,
                )  # fmt: skip
            page.elements.append(Element(text, write(page, draw, x, y, text, face, ink)))
        y += line + rng.choice((1, 2, 4, 6, 10))
    return page


def scattered(rng: random.Random, split: str, width: int, height: int, most: int) -> Page:
    """A page with a few elements apart from one another: buttons, chips and labels."""
    light = rng.random() < 0.7
    page = Page(Image.new("RGB", (width, height), colour(rng, light)))
    draw = ImageDraw.Draw(page.image)
    taken: list[tuple[float, float, float, float]] = []
    for _ in range(rng.randint(2, most)):
        face = font(rng.choice(fonts()), rng.choice((11, 12, 13, 14, 14, 15, 16, 18, 20)))
        text = phrase(rng, split, 2)
        wide, high = face.getlength(text), sum(face.getmetrics())
        pad = rng.choice((0, 4, 6, 10))
        if wide + 2 * pad + 4 > width:
            continue
        x = rng.uniform(pad + 1, width - wide - pad - 2)
        y = rng.uniform(pad + 1, height - high - pad - 2)
        box = (x - pad, y - pad, x + wide + pad, y + high + pad)
        if any(box[0] < b[2] + 3 and b[0] < box[2] + 3 and box[1] < b[3] + 3 and b[1] < box[3] + 3 for b in taken):
            continue
        taken.append(box)
        ink = colour(rng, not light)
        if pad:
            fill = colour(rng, light)
            draw.rounded_rectangle(box, rng.randint(0, 12), fill=fill, outline=ink if rng.random() < 0.5 else None)
        written = write(page, draw, x, y, text, face, ink)
        page.elements.append(Element(text, box if pad else written))
    return page
