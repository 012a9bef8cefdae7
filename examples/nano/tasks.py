"""Pictures with questions and answers, drawn from a seed: shapes, lines of text, pages, charts, pairs of pictures.

Each function makes one sample of a split: its pictures, and pairs of question and answer. Test samples use words, or
combinations, that no training sample has (`words.held_out`, `unseen`).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pages
import texts
from attrs import frozen
from PIL import Image, ImageDraw, ImageFilter
from sklearn import datasets
from words import phrase


@frozen
class Sample:
    """Pictures, questions about them with their answers, and where the characters of a page stand.

    `looks` has a box in thousandths for each question whose answer can be seen in it, and None for each other.
    """

    images: Sequence[Image.Image]
    pairs: Sequence[tuple[str, str]]
    glyphs: Sequence[Sequence[object]] = ()
    looks: Sequence[Sequence[int] | None] = ()


Maker = Callable[[random.Random, str], Sample]

SMALL = ((224, 224), (224, 224), (336, 224), (224, 336), (252, 196), (392, 168), (168, 308))
"""Sizes of small pages, in pixels; multiples of 28, so that none is padded."""

COLOURS = {
    "red": (215, 35, 35), "green": (35, 150, 55), "blue": (40, 75, 210), "yellow": (240, 215, 40),
    "orange": (245, 140, 25), "purple": (125, 45, 160), "pink": (245, 130, 180), "brown": (120, 72, 35),
    "black": (18, 18, 18), "white": (246, 246, 246), "gray": (130, 130, 130), "teal": (0, 135, 135),
}  # fmt: skip
SIDES = {"triangle": 3, "square": 4, "diamond": 4, "pentagon": 5, "hexagon": 6}
SHAPES = ("circle", "ellipse", "rectangle", "star", "cross", *SIDES)


def unseen(*facts: object) -> bool:
    """Whether a combination is kept for tests: one in eight, by its hash."""
    return hashlib.sha256(repr(facts).encode()).digest()[0] < 32


def box_text(box: Sequence[float], width: int, height: int) -> str:
    """A box in pixels as AndesVL writes it."""
    return texts.BOX.format(*thousandths(box, width, height))


def thousandths(box: Sequence[float], width: int, height: int) -> list[int]:
    """A box in pixels in thousandths of width and height, within the picture."""
    sides = (width, height) * 2
    return [min(1000, max(0, round(1000 * n / side))) for n, side in zip(box, sides, strict=True)]


def answer_box(box: Sequence[float], width: int, height: int) -> str:
    """A box as it is answered: see `texts.coarse`."""
    return texts.coarse(box_text(box, width, height))


# ---------------------------------------------------------------- pages and lines


def elements(rng: random.Random, split: str) -> Sample:
    """A small page: where an element is, what stands at a place, whether something is there."""
    width, height = rng.choice(SMALL)
    page = pages.scattered(rng, split, width, height, rng.choice((4, 8, 14)))
    return Sample([page.image], questions(rng, split, page.elements, width, height), page.shares())


def questions(
    rng: random.Random, split: str, found: Sequence[pages.Element], width: int, height: int, most: int = 4
) -> list[tuple[str, str]]:
    """At most `most` questions of each kind about a page's elements."""
    names = [e.text for e in found]
    unique = [e for e in found if names.count(e.text) == 1]
    pairs = []
    for element in rng.sample(unique, min(most, len(unique))):
        where = answer_box(element.box, width, height)
        pairs.append((rng.choice(texts.WHERE).format(name=f'"{element.text}"'), where))
    for element in rng.sample(unique, min(most, len(unique))):
        where = box_text(element.box, width, height)
        pairs.append((rng.choice(texts.WHAT_IS_AT).format(box=where), element.text))
    if unique:
        pairs.append((rng.choice(texts.PRESENT).format(name=f'"{rng.choice(unique).text}"'), "Yes."))
    absent = phrase(rng, split, 2)
    if absent not in names:
        pairs.append((rng.choice(texts.PRESENT).format(name=f'"{absent}"'), "No."))
    return pairs


def line(rng: random.Random, split: str, words: int = 4, margin: int = 40) -> Sample:
    """One line of text, to be read: at most so many words, with at most so many pixels beside and above it."""
    face = pages.font(rng.choice(pages.fonts()), rng.choice((12, 13, 14, 16, 18, 20, 24)))
    text = phrase(rng, split, words)
    while len(text) > 4 and face.getlength(text) > 360:
        text = text[: len(text) * 3 // 4].rstrip()
    wide, high = face.getlength(text) + 8, sum(face.getmetrics()) + 4
    width, height = (28 * math.ceil((n + rng.randint(0, margin)) / 28) for n in (wide, high))
    light = rng.random() < 0.7
    page = pages.Page(Image.new("RGB", (width, height), pages.colour(rng, light)))
    x, y = rng.uniform(4, width - wide + 4), rng.uniform(2, height - high + 2)
    pages.write(page, ImageDraw.Draw(page.image), x, y, text, face, pages.colour(rng, not light))
    return Sample([page.image], [(rng.choice(texts.READ), text)], page.shares())


def paragraph(rng: random.Random, split: str) -> Sample:
    """A few lines, to be read in order."""
    width, height = rng.choice(((224, 112), (224, 140), (308, 112), (336, 84), (252, 168)))
    page = pages.dense(rng, split, width, height)
    found = sorted(page.elements, key=lambda e: (round(e.box[1]), e.box[0]))
    if not found:
        return paragraph(rng, split)
    return Sample([page.image], [(rng.choice(texts.READ_ALL), "\n".join(e.text for e in found[:8]))])


# ---------------------------------------------------------------- shapes


def background(rng: random.Random, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int] | None]:
    """A plain, graded, striped or noisy background -> (picture, its colour if it is plain)."""
    kind = rng.random()
    one, two = (tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(2))
    if kind < 0.25:
        return Image.new("RGB", (width, height), "white"), (255, 255, 255)
    if kind < 0.55:
        return Image.new("RGB", (width, height), one), one  # type: ignore[arg-type,return-value]
    if kind < 0.75:
        ramp = np.linspace(0, 1, width if rng.random() < 0.5 else height)[:, None] * (np.array(two) - one) + one
        flat = np.broadcast_to(ramp[None] if len(ramp) == width else ramp[:, None], (height, width, 3))
        return Image.fromarray(flat.astype(np.uint8)), None
    noise = np.random.default_rng(rng.getrandbits(32)).normal(one, rng.uniform(4, 24), (height, width, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8)), None


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: Sequence[float], fill: object, turn: float) -> None:
    """A filled shape inside a box."""
    x1, y1, x2, y2 = box
    cx, cy, rx, ry = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2

    def around(count: int, start: float, radii: Sequence[float] = (1.0,)) -> list[tuple[float, float]]:
        steps = range(count * len(radii))
        angles = [start + 2 * math.pi * n / len(steps) for n in steps]
        return [
            (cx + rx * r * math.sin(a), cy - ry * r * math.cos(a))
            for a, r in zip(angles, list(radii) * count, strict=True)
        ]

    if shape in ("circle", "ellipse"):
        draw.ellipse((x1, y1, x2, y2), fill=fill)  # type: ignore[arg-type]
    elif shape in ("rectangle", "square"):
        draw.rectangle((x1, y1, x2, y2), fill=fill)  # type: ignore[arg-type]
    elif shape == "star":
        draw.polygon(around(5, turn, (1.0, 0.42)), fill=fill)  # type: ignore[arg-type]
    elif shape == "cross":
        wide, high = rx * 0.33, ry * 0.33
        draw.rectangle((cx - wide, y1, cx + wide, y2), fill=fill)  # type: ignore[arg-type]
        draw.rectangle((x1, cy - high, x2, cy + high), fill=fill)  # type: ignore[arg-type]
    else:
        draw.polygon(around(SIDES[shape], 0.0 if shape == "diamond" else turn), fill=fill)  # type: ignore[arg-type]


def far(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether a person tells two colours apart at a glance."""
    return math.dist(one, other) > 110


def place(rng: random.Random, width: int, height: int, shape: str, low: float, high: float) -> tuple[float, ...]:
    """A box for a shape; circles and the like are as wide as high, ellipses and rectangles clearly not."""
    side = rng.uniform(low, high) * min(width, height)
    stretch = rng.choice((0.45, 0.6, 1.6, 2.2)) if shape in ("ellipse", "rectangle") else 1.0
    w, h = side * math.sqrt(stretch), side / math.sqrt(stretch)
    w, h = min(w, width - 2), min(h, height - 2)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def shapes(rng: random.Random, split: str, sides: tuple[int, int] = (64, 320), most: int = 5) -> Sample:
    """One shape, or several, on any background at any size."""
    width, height = rng.randint(*sides), rng.randint(*sides)
    image, plain = background(rng, width, height)
    draw = ImageDraw.Draw(image)
    count = 1 if rng.random() < 0.55 or most == 1 else rng.randint(2, most)
    drawn: list[tuple[str, str, tuple[float, ...]]] = []
    for _ in range(count):
        shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
        if unseen(shape, colour) != (split == "test") and count == 1:
            return shapes(rng, split, sides, most)
        box = place(rng, width, height, shape, *((0.25, 0.9) if count == 1 else (0.2, 0.4)))
        tone = tuple(min(255, max(0, c + rng.randint(-14, 14))) for c in COLOURS[colour])
        behind = image.crop(tuple(int(n) for n in box)).resize((1, 1)).getpixel((0, 0)) if plain is None else plain
        if not far(tone, behind) or any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for _, _, b in drawn
        ):
            continue
        draw_shape(draw, shape, box, tone, rng.uniform(-0.3, 0.3) if shape not in ("diamond",) else 0.0)
        drawn.append((shape, colour, box))
    if not drawn:
        return shapes(rng, split, sides, most)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(0.6))
    pairs, boxes = shape_questions(rng, drawn, width, height)
    return Sample([image], pairs, looks=[None if box is None else thousandths(box, width, height) for box in boxes])


Boxes = list[tuple[float, ...] | None]


def shape_questions(
    rng: random.Random, drawn: Sequence[tuple[str, str, tuple[float, ...]]], width: int, height: int
) -> tuple[list[tuple[str, str]], Boxes]:
    """Questions on drawn shapes, and in which box the answer of each can be seen."""
    names, tones = [s for s, _, _ in drawn], [c for _, c, _ in drawn]
    pairs, boxes = [], Boxes()
    if len(drawn) == 1:
        boxes += [drawn[0][2]] * 4
        pairs.append((rng.choice(texts.SHAPE), names[0]))
        pairs.append((rng.choice(texts.SHAPE_COLOUR).format(shape=names[0]), tones[0]))
        pairs.append((rng.choice(texts.SHAPE_COLOUR).format(shape="shape"), tones[0]))
        pairs.append((rng.choice(texts.DESCRIBE_PICTURE), f"The picture shows a {tones[0]} {names[0]}."))
    else:
        boxes += [None] * 2
        pairs.append((rng.choice(texts.COUNT).format(shapes="shapes"), str(len(drawn))))
        listed = ", ".join(f"a {c} {s}" for s, c, b in sorted(drawn, key=lambda d: d[2][0]))
        pairs.append((rng.choice(texts.DESCRIBE_PICTURE), f"From left to right: {listed}."))
    for shape, colour, box in drawn:
        if names.count(shape) == 1:
            name = rng.choice((f"the {shape}", f"the {colour} {shape}"))
            pairs.append((rng.choice(texts.WHERE).format(name=name), answer_box(box, width, height)))
            pairs.append((rng.choice(texts.SHAPE_COLOUR).format(shape=shape), colour))
            boxes += [box] * 2
    there, other = rng.choice(names), rng.choice([s for s in SHAPES if s not in names])
    pairs += [(rng.choice(texts.SHAPE_THERE).format(shape=s), a) for s, a in ((there, "yes"), (other, "no"))]
    boxes += [drawn[names.index(there)][2], drawn[0][2] if len(drawn) == 1 else None]
    there, other = rng.choice(tones), rng.choice([c for c in COLOURS if c not in tones])
    pairs += [(rng.choice(texts.COLOUR_THERE).format(colour=c), a) for c, a in ((there, "yes"), (other, "no"))]
    boxes += [drawn[tones.index(there)][2], drawn[0][2] if len(drawn) == 1 else None]
    return pairs, boxes


def two_pictures(rng: random.Random, split: str) -> Sample:
    """Two pictures of a shape each: which shows what, and whether they agree."""
    found = []
    for _ in range(2):
        while True:
            shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
            if unseen(shape, colour) == (split == "test"):
                break
        width, height = rng.randint(84, 168), rng.randint(84, 168)
        grey = rng.randint(190, 255) if COLOURS[colour] != COLOURS["white"] else rng.randint(20, 90)
        image = Image.new("RGB", (width, height), (grey,) * 3)
        box = place(rng, width, height, shape, 0.4, 0.85)
        draw_shape(ImageDraw.Draw(image), shape, box, COLOURS[colour], rng.uniform(-0.3, 0.3))
        found.append((image, shape, colour))
    (one, shape, colour), (two, shape2, colour2) = found
    pairs = []
    if (shape, colour) != (shape2, colour2):
        name, answer = rng.choice(((f"a {colour} {shape}", "The first."), (f"a {colour2} {shape2}", "The second.")))
        pairs.append((texts.TWO[0].format(name=name), answer))
    pairs.append((texts.TWO[1], "yes" if (shape, colour) == (shape2, colour2) else "no"))
    compared = f"The first shows a {colour} {shape}, the second a {colour2} {shape2}."
    pairs.append((rng.choice(texts.TWO[2:]), compared))
    return Sample([one, two], pairs)


# ---------------------------------------------------------------- charts


@cache
def tables() -> tuple[tuple[str, tuple[str, ...], np.ndarray], ...]:
    """Real tables of scikit-learn -> (name, columns, rows)."""
    found = []
    for load in (
        datasets.load_iris,
        datasets.load_wine,
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_linnerud,
    ):
        data = load()
        scaled = load(scaled=False) if load is datasets.load_diabetes else data
        names = tuple(str(n).replace("_", " ").removesuffix(" (cm)") for n in data.feature_names)
        found.append((load.__name__.removeprefix("load_").replace("_", " "), names, np.asarray(scaled.data, float)))
    return tuple(found)


def chart(rng: random.Random, split: str) -> Sample:
    """Bars of a real table's row or column means; the table's rows are split between training and tests."""
    title, names, rows = rng.choice(tables())
    kept = [n for n in range(len(rows)) if unseen(title, n) == (split == "test")]
    count = rng.randint(3, min(6, len(names)))
    columns = rng.sample(range(len(names)), count)
    sample = rows[rng.sample(kept, min(len(kept), rng.choice((1, 5, 20))))].mean(0)[columns]
    scale = 10 ** math.floor(math.log10(max(sample.max(), 1e-9)))
    values = [float(f"{v / scale * 10:.0f}") if scale >= 1 else round(v, 2) for v in sample]
    labels = [names[c][:14] for c in columns]
    if len(set(labels)) < count or max(values) <= 0:
        return chart(rng, split)
    image = draw_bars(rng, f"{title.capitalize()} {rng.choice(('means', 'sample', 'values'))}", labels, values)
    return Sample([image], chart_questions(rng, labels, values))


def written(value: float) -> str:
    """A value as charts show it."""
    return f"{value:g}"


def draw_bars(rng: random.Random, title: str, labels: Sequence[str], values: Sequence[float]) -> Image.Image:
    """Bars, upright or lying, with their labels and sometimes their values."""
    width, height = rng.choice(((336, 224), (308, 252), (364, 224), (280, 280)))
    light = rng.random() < 0.8
    image = Image.new(
        "RGB", (width, height), pages.colour(rng, light) if rng.random() < 0.4 else ("white" if light else "black")
    )
    draw, ink = ImageDraw.Draw(image), "black" if light else "white"
    face = pages.font(rng.choice(pages.fonts()), rng.choice((11, 12, 13)))
    draw.text((width / 2 - face.getlength(title) / 2, 4), title, font=face, fill=ink)
    one = rng.choice(list(COLOURS.values())[:8])
    left = max(face.getlength(label) for label in labels) + 8
    step = (height - 34) / len(labels)
    for n, (label, value) in enumerate(zip(labels, values, strict=True)):
        y, long = 26 + n * step, max(1, (width - left - 46) * max(value, 0) / max(values))
        draw.text((4, y + step / 2 - 8), label, font=face, fill=ink)
        draw.rectangle((left, y + step * 0.15, left + long, y + step * 0.85), fill=one)
        draw.text((left + long + 4, y + step / 2 - 8), written(value), font=face, fill=ink)
    return image


def chart_questions(rng: random.Random, labels: Sequence[str], values: Sequence[float]) -> list[tuple[str, str]]:
    """Questions with exact answers."""
    order = sorted(range(len(labels)), key=values.__getitem__)
    pairs = [("How many bars are there?", str(len(labels)))]
    for n in rng.sample(range(len(labels)), min(3, len(labels))):
        pairs.append(
            (rng.choice((texts.CHART[0], texts.CHART[1], texts.CHART[4])).format(name=labels[n]), written(values[n]))
        )
    if values[order[-1]] != values[order[-2]]:
        pairs.append(("Which bar is the highest?", labels[order[-1]]))
    if values[order[0]] != values[order[1]]:
        pairs.append(("Which one is the lowest?", labels[order[0]]))
    a, b = rng.sample(range(len(labels)), 2)
    if values[a] != values[b]:
        pairs.append((f"Is {labels[a]} larger than {labels[b]}?", "yes" if values[a] > values[b] else "no"))
    pairs.append((f"What is the difference between {labels[a]} and {labels[b]}?", f"{abs(values[a] - values[b]):g}"))
    return pairs
