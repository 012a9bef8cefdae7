"""Write the data and the tokenizer of andes-nano.

    python examples/nano/prepare.py                   # everything, into examples/nano/data
    python examples/nano/prepare.py reading --limit 200
    python examples/nano/prepare.py screens           # needs the plugin andesui, Chromium, and npm's registry

Each part is skipped where it is complete; `--limit` makes small ones, to try a recipe.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import language
import pages
import real
import screens
import tasks
import tokenizer
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
Line = tuple[dict[str, Any], Sequence[Image.Image]]
"""A data line, and its pictures."""


def reading(rng: random.Random, split: str) -> Line:
    """A page for the stage `reading`, with its characters."""
    width, height = rng.choice(tasks.SMALL)
    scattered = rng.random() < 0.2
    page = pages.scattered(rng, split, width, height, 12) if scattered else pages.dense(rng, split, width, height)
    messages = talk(1, "", ".")
    return {"messages": messages, "images": ["0"], "glyphs": page.shares()}, [page.image]


def talk(pictures: int, question: str, answer: str) -> list[dict[str, Any]]:
    """One question about pictures, which stand first."""
    content = [{"type": "image"}] * pictures + ([{"type": "text", "text": question}] if question else [])
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def asked(make: tasks.Maker) -> Callable[[random.Random, str], Line]:
    """A line of the pictures and questions that a function makes."""

    def line(rng: random.Random, split: str) -> Line:
        while not (sample := make(rng, split)).pairs:
            pass
        shown = len(sample.images)
        talks = [talk(shown, question, answer) for question, answer in sample.pairs]
        made: dict[str, Any] = {"conversations": talks, "images": [str(n) for n in range(shown)]}
        made |= {"glyphs": sample.glyphs} if sample.glyphs else {}
        return made | ({"looks": sample.looks} if sample.looks else {}), sample.images

    return line


def said(make: Callable[[random.Random, str], dict[str, Any]]) -> Callable[[random.Random, str], Line]:
    """A line without pictures."""
    return lambda rng, split: (make(rng, split), [])


PARTS: dict[str, tuple[Callable[[random.Random, str], Line], int]] = {
    "reading": (reading, 10_000),
    "elements": (asked(tasks.elements), 12_000),
    "line": (asked(tasks.line), 15_000),
    "paragraph": (asked(tasks.paragraph), 3_000),
    "shapes": (asked(tasks.shapes), 12_000),
    "two": (asked(tasks.two_pictures), 2_000),
    "chart": (asked(tasks.chart), 4_000),
    "digit": (asked(real.digit), 3_000),
    "easy": (asked(real.easy), 4_000),
    "photo": (asked(real.photo), 1_500),
    "word": (asked(partial(tasks.line, words=1, margin=12)), 12_000),
    "small-shapes": (asked(partial(tasks.shapes, sides=(56, 112), most=1)), 12_000),
    "small-digit": (asked(partial(real.digit, sides=(50, 84))), 12_000),
    "small-easy": (asked(partial(real.easy, sides=(56, 84))), 8_000),
    "sums": (said(partial(language.reasoning, think=False)), language.LINES["sums"]),
    "thought": (said(partial(language.reasoning, think=True)), language.LINES["thought"]),
    "call": (said(language.call), 3_000),
}
"""Name -> what makes a line, and how many for training; tests have `TESTS` of each."""

SCREENS = "screens"
"""Rendered screens, which `screens.py` writes."""
TESTS = 400


def write(name: str, split: str, out: Path, count: int) -> None:
    """A part as `name.jsonl` with its pictures in `name/`; it appears whole. Line n depends on name, split and n."""
    target, folder, building = out / f"{name}.jsonl", out / name, out / f"{name}.part"
    make, _ = PARTS[name]
    if target.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with building.open("w") as file:
        for number in tqdm(range(count), desc=f"{split} {name}", unit="line"):
            line, images = make(random.Random(f"nano/{split}/{name}/{number}"), split)
            if images:
                line["images"] = [f"{name}/{number}-{n}.png" for n in range(len(images))]
            for path, image in zip(line.get("images", ()), images, strict=True):
                image.save(out / path, compress_level=1)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    building.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*PARTS, SCREENS]
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(known)}; none: all")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    parser.add_argument("--limit", type=int, default=0, help="lines of each part")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(known):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer" / "tokenizer.json").is_file():
        tokenizer.write(args.out / "tokenizer")
    for name in args.parts or known:
        if name == SCREENS:
            screens.write(args.out, args.limit)
            continue
        for split, count in (("train", PARTS[name][1]), ("test", TESTS)):
            write(name, split, args.out / split, args.limit or count)


if __name__ == "__main__":
    main()
