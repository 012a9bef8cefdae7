"""Write the data and the tokenizer of andes-nano.

    python examples/nano/prepare.py                   # everything, into examples/nano/data
    python examples/nano/prepare.py reading --limit 200

Each part is skipped where it is complete; `--limit` makes small ones, to try a recipe.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pages
import tokenizer
from PIL import Image
from tqdm import tqdm

HERE = Path(__file__).parent
Line = tuple[dict[str, Any], dict[str, Image.Image]]
"""A data line, and the pictures that it names."""

SMALL = ((224, 224), (224, 224), (336, 224), (224, 336), (252, 196), (392, 168))


def reading(rng: random.Random) -> Line:
    """A page for the stage `reading`."""
    width, height = rng.choice(SMALL)
    page = pages.dense(rng, "train", width, height) if rng.random() < 0.8 else pages.scattered(rng, "train", width, height, 12)
    content = [{"type": "image", "image": "page"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "."}]
    return {"messages": messages, "glyphs": page.shares()}, {"page": page.image}


PARTS: dict[str, tuple[Callable[[random.Random], Line], int]] = {"reading": (reading, 10_000)}
"""Name -> what makes a line, and how many."""


def lines(name: str, count: int) -> Iterator[Line]:
    """The lines of a part; line n depends on its name and n alone."""
    make, _ = PARTS[name]
    for number in tqdm(range(count), desc=name, unit="line"):
        yield make(random.Random(f"nano/{name}/{number}"))


def write(name: str, out: Path, count: int) -> None:
    """A part as `name.jsonl` with its pictures in `name/`; it appears whole."""
    target, folder, building = out / f"{name}.jsonl", out / name, out / f"{name}.part"
    if target.is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with building.open("w") as file:
        for number, (line, images) in enumerate(lines(name, count)):
            text = json.dumps(line, ensure_ascii=False)
            for key, image in images.items():
                path = f"{name}/{number}-{key}.png"
                image.save(out / path, compress_level=1)
                text = text.replace(json.dumps(key), json.dumps(path))
            file.write(text + "\n")
    building.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--out", type=Path, default=HERE / "data")
    parser.add_argument("--limit", type=int, default=0, help="lines of each part")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer" / "tokenizer.json").is_file():
        tokenizer.write(args.out / "tokenizer")
    for name in args.parts or PARTS:
        write(name, args.out, args.limit or PARTS[name][1])


if __name__ == "__main__":
    main()
