"""A small data set for the pre-training examples: coloured shapes, captions, boxes, sums with and without reasoning.

python examples/shapes.py [FOLDER]      # writes it in all three formats and counts what it wrote
"""

from __future__ import annotations

import io
import json
import random
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from andes_training.reading import read_samples
from andes_training.recipe import DataRecipe
from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "black")
SIDE = 56
Sample = tuple[Image.Image, list[dict[str, Any]]]


def picture(colour: str, box: tuple[int, int, int, int], side: int = SIDE) -> Image.Image:
    """A filled square on white; the box is in thousandths."""
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).rectangle([n * side // 1000 for n in box], fill=colour)
    return image


def talk(question: str, answer: str) -> list[dict[str, Any]]:
    """One question about one picture, which stands where `{"type": "image"}` is."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def captions(count: int, seed: int = 0) -> Iterator[Sample]:
    """Pictures and what they show."""
    rng = random.Random(seed)
    for number in range(count):
        colour, left, top = COLOURS[number % len(COLOURS)], rng.randrange(0, 500), rng.randrange(0, 500)
        yield picture(colour, (left, top, left + 500, top + 500)), talk("caption?", f"a {colour} square")


def boxes(count: int, seed: int = 1) -> Iterator[Sample]:
    """Pictures of a square in one half, and its box as AndesVL writes it."""
    rng = random.Random(seed)
    for number in range(count):
        box = ((0, 0, 500, 1000), (500, 0, 1000, 1000))[number % 2]
        answer = "<|box_start|>({},{}),({},{})<|box_end|>".format(*box)
        yield picture(rng.choice(COLOURS), box), talk("where?", answer)


def sums(think: bool) -> Iterator[dict[str, Any]]:
    """Text alone: the same sums, answered at once or after reasoning."""
    for number in range(1, 4):
        reasoning = f"<think>{number} twice</think>" if think else ""
        messages = [
            {"role": "user", "content": f"{number}+{number}?"},
            {"role": "assistant", "content": f"{reasoning}{2 * number}"},
        ]
        yield {"messages": messages, "think": think}


def write_lines(path: Path, samples: Iterator[Sample]) -> None:
    """JSON Lines; the pictures lie beside it."""
    with open(path, "w", encoding="utf-8") as file:
        for number, (image, messages) in enumerate(samples):
            name = f"{path.stem}-{number}.png"
            image.save(path.with_name(name))
            file.write(json.dumps({"messages": messages, "images": [name]}) + "\n")


def write_tar(path: Path, samples: Iterator[Sample]) -> None:
    """A WebDataset shard: `key.json` and `key.png`."""
    with tarfile.open(path, "w") as archive:
        for number, (image, messages) in enumerate(samples):
            for suffix, data in (("json", json.dumps({"messages": messages}).encode()), ("png", png(image))):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def write_parquet(path: Path, samples: Iterator[Sample]) -> None:
    """Parquet as Hugging Face datasets writes it: messages as JSON, pictures as bytes."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = [
        {"messages": json.dumps(messages), "images": [{"bytes": png(image), "path": None}]}
        for image, messages in samples
    ]
    write_table(pa.Table.from_pylist(rows), path, row_group_size=64)


def write_text(path: Path, samples: Iterator[dict[str, Any]]) -> None:
    """JSON Lines without pictures."""
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main(folder: Path) -> None:
    write_lines(folder / "captions.jsonl", captions(8))
    write_tar(folder / "captions.tar", captions(8))
    write_parquet(folder / "boxes.parquet", boxes(8))
    write_text(folder / "sums.jsonl", sums(think=True))
    for path in sorted(p for p in folder.iterdir() if p.suffix != ".png"):
        print(f"{path.name}: {len(read_samples(DataRecipe(path=path), folder))} samples")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
