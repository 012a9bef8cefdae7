"""Real pictures: scikit-learn's handwritten digits and photographs, scikit-image's photographs, easy-vqa."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import easy_vqa
import numpy as np
import texts
from PIL import Image, ImageChops, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from tasks import Sample, background, thousandths

HELD_OUT = 500
WHOLE = (0, 0, 1000, 1000)
"""The box of a whole picture, in thousandths."""
PHOTOS = {
    "astronaut.png": "an astronaut",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "camera.png": "a man with a camera",
    "coins.png": "old coins",
    "rocket.jpg": "a rocket",
    "hubble_deep_field.jpg": "galaxies",
    "moon.png": "the surface of the moon",
    "brick.png": "a brick wall",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "page.png": "a page of a book",
    "clock_motion.png": "a clock",
    "ihc.png": "cells under a microscope",
    "retina.jpg": "a retina",
}
"""scikit-image's photographs -> what they show. Those that an installation lacks are left out."""


@cache
def digit_images(split: str) -> tuple[tuple[Image.Image, str], ...]:
    """Handwritten digits -> (8 x 8 grey picture, answer); 500 of a fixed seed are the test split."""
    data = load_digits()
    order = list(range(len(data.images)))
    random.Random(0).shuffle(order)
    kept = order[-HELD_OUT:] if split == "test" else order[:-HELD_OUT]
    return tuple((Image.fromarray(np.uint8(data.images[i] * 255 / 16)), str(data.target[i])) for i in kept)


def digit(rng: random.Random, split: str, sides: tuple[int, int] = (84, 168)) -> Sample:
    """A digit at any size: light on dark or dark on light, straight or turned a little."""
    image, answer = rng.choice(digit_images(split))
    side = rng.randint(*sides)
    grey = image.resize((side, side), rng.choice((Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)))
    grey = grey.rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    if rng.random() < 0.6:
        grey = ImageOps.invert(grey)
    tinted = ImageOps.colorize(grey, *rng.choice((("black", "white"), ("#102040", "#f0f0e0"), ("#301010", "#ffe8d0"))))
    return Sample([tinted], [(rng.choice(texts.DIGIT), answer)], looks=[WHOLE])


@cache
def vqa(split: str) -> tuple[tuple[Path, tuple[tuple[str, str], ...]], ...]:
    """easy-vqa's pictures of a split -> (path, questions and answers)."""
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    found: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        found.setdefault(image, []).append((question, answer))
    return tuple((Path(paths[i]), tuple(found[i])) for i in sorted(found))


def easy(rng: random.Random, split: str, sides: Sequence[int] = (64, 84, 112, 112, 140, 168)) -> Sample:
    """One of easy-vqa's pictures at any size; every question for a colour or a shape, and four of the others."""
    path, pairs = rng.choice(vqa(split))
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((side := rng.choice(sides), side), Image.Resampling.BICUBIC)
    closed = [p for p in pairs if p[1] in ("yes", "no")]
    chosen = [*(p for p in pairs if p not in closed), *rng.sample(closed, min(4, len(closed)))]
    return Sample([image], chosen, looks=[shape_box(image)] * len(chosen))


def shape_box(image: Image.Image) -> list[int]:
    """The box of a shape on a plain background, in thousandths."""
    behind = Image.new("RGB", image.size, image.getpixel((0, 0)))
    found = ImageChops.difference(image, behind).convert("L").point(lambda n: 255 * (n > 24)).getbbox()
    return thousandths(found or (0, 0, *image.size), *image.size)


@cache
def photos() -> tuple[tuple[Image.Image, str], ...]:
    """Photographs and what they show."""
    spec = find_spec("skimage")  # only its pictures are needed, not the package
    folders = [Path(place) / "data" for place in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        raise SystemExit("scikit-image's photographs are missing: pip install --no-deps scikit-image")
    there = [(path, what) for name, what in PHOTOS.items() if (path := folders[0] / name).is_file()]
    found = [(Image.open(path).convert("RGB"), what) for path, what in there]
    named = zip(load_sample_images().images, ("a Chinese temple", "a flower"), strict=True)
    return (*found, *((Image.fromarray(image), text) for image, text in named))


def photo(rng: random.Random, split: str) -> Sample:
    """A part of a photograph: the left four fifths in training, parts that reach into the rest in tests."""
    image, what = rng.choice(photos())
    side = rng.randint(min(image.size) // 3, min(image.size))
    edge = int(image.width * 0.8)
    low, high = (max(0, edge - side // 3), image.width - side) if split == "test" else (0, max(0, edge - side))
    left, top = rng.randint(min(low, high), max(low, high)), rng.randint(0, image.height - side)
    part = image.crop((left, top, left + side, top + side)).resize((shown := rng.choice((112, 140, 168)), shown))
    part = ImageEnhance.Brightness(part).enhance(rng.uniform(0.75, 1.25))
    if rng.random() < 0.5 and "page" not in what:
        part = ImageOps.mirror(part)
    others = [t for _, t in photos() if t != what]
    pairs = [(rng.choice(texts.SCENE), f"The photo shows {what}."), (f"Is this a photo of {what}?", "yes")]
    return Sample([part], [*pairs, (f"Is this a photo of {rng.choice(others)}?", "no")])


def blind(rng: random.Random, sample: Sample) -> Sample:
    """The same questions about noise, to see what is answered without the picture."""
    noisy = [background(random.Random(rng.random()), i.width, i.height)[0] for i in sample.images]
    for n, image in enumerate(noisy):
        noise = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (image.height, image.width, 3), np.uint8)
        noisy[n] = Image.fromarray(noise)
    return Sample(noisy, sample.pairs)
