"""Write the data and the tokenizer of the first-light model: easy-vqa's pictures and scikit-learn's handwritten digits.

    python examples/first_light/prepare.py          # into examples/first_light/data

easy-vqa (PyPI, MIT) keeps its own split. Of the 1 797 digits, 500 drawn with a fixed seed are held out.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import easy_vqa
import numpy as np
from andes_qwen3.small import train_small_tokenizer
from PIL import Image
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
HELD_OUT = 500
VOCABULARY = 512
YES_NO = 4
SHAPES = ("circle", "rectangle", "triangle")
DIGIT_QUESTIONS = ("which digit is shown?", "what digit is in the image?", "what number is this?", "read the digit.")


def easy_vqa_questions(split: str) -> Iterator[tuple[Path, list[tuple[str, str]]]]:
    """Pictures of a split ('train' or 'test') -> (path, [(question, answer)])."""
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    found: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        found[image].append((question, answer))
    for image in sorted(found):
        yield Path(paths[image]), found[image]


def thinned(pairs: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """Every question for a colour or a shape, and at most `YES_NO` of the many that ask for yes or no."""
    closed = [p for p in pairs if p[1] in ("yes", "no")]
    return [p for p in pairs if p not in closed] + rng.sample(closed, min(YES_NO, len(closed)))


def digits(split: str) -> Iterator[tuple[Image.Image, str]]:
    """Handwritten digits of a split ('train' or 'test') -> (8x8 grey picture, answer)."""
    data = load_digits()
    order = list(range(len(data.images)))
    random.Random(0).shuffle(order)
    for index in order[-HELD_OUT:] if split == "test" else order[:-HELD_OUT]:
        yield Image.fromarray(np.uint8(data.images[index] * 255 / 16)), str(data.target[index])


def data_url(image: Image.Image) -> str:
    """A picture as a PNG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def conversation(url: str, question: str, answer: str) -> list[dict[str, object]]:
    """One question about one picture, as messages."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def write(file: TextIO, url: str, pairs: list[tuple[str, str]]) -> None:
    """One line: every question about one picture; none if there is no question."""
    if pairs:
        file.write(json.dumps({"conversations": [conversation(url, q, a) for q, a in pairs]}) + "\n")


def main(out: Path = HERE / "data") -> None:
    out.mkdir(parents=True, exist_ok=True)
    texts: list[str] = list(DIGIT_QUESTIONS)
    with (
        open(out / "easy_vqa.jsonl", "w", encoding="utf-8") as everything,
        open(out / "easy_vqa_thinned.jsonl", "w", encoding="utf-8") as some,
        open(out / "shapes.jsonl", "w", encoding="utf-8") as shapes,
    ):
        for path, pairs in easy_vqa_questions("train"):
            texts += [text for pair in pairs for text in pair]
            write(everything, str(path), pairs)
            write(some, str(path), thinned(pairs, random.Random(path.name)))
            write(shapes, str(path), [pair for pair in pairs if pair[1] in SHAPES])
    with open(out / "digits.jsonl", "w", encoding="utf-8") as file:
        for image, answer in digits("train"):
            write(file, data_url(image), [(question, answer) for question in DIGIT_QUESTIONS])
    tokenizer = train_small_tokenizer(texts, VOCABULARY)
    (out / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(str(out / "tokenizer" / "tokenizer.json"))
    files = len(list(out.glob("*.jsonl")))
    print(f"wrote {files} data files and a tokenizer of {tokenizer.get_vocab_size()} ids into {out}")


if __name__ == "__main__":
    main()
