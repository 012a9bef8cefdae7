"""The tokenizer of andes-nano: 4 096 ids, learnt from the templates and words of its data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import texts
from andes_qwen3.small import train_small_tokenizer
from words import PLAIN, phrase

VOCABULARY = 4096
LINES = 40_000


def corpus() -> Iterator[str]:
    """Texts as the data holds them; the same each time."""
    rng = random.Random("tokenizer")
    templates = [t for value in vars(texts).values() if isinstance(value, tuple) for t in value]
    vocabulary = [*PLAIN, *texts.WORDS]
    yield from templates
    for word in vocabulary:
        for form in (word, word.capitalize(), word.upper()):
            yield from (form, f"a {form}") * 3
    for _ in range(LINES):
        yield phrase(rng, "train", 6)
        box = texts.BOX.format(*(rng.randrange(1001) for _ in range(4)))
        name, other = phrase(rng, "train", 2), phrase(rng, "train", 2)
        yield rng.choice(templates).format_map(Filled(name=f'"{name}"', other=f'"{other}"', box=box, act=name.lower()))


class Filled(dict[str, str]):
    """A template's fields; those without a value get a word."""

    def __missing__(self, key: str) -> str:
        return "circle"


def write(folder: Path) -> Path:
    """Train it and write `tokenizer.json` -> its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    train_small_tokenizer(corpus(), VOCABULARY).save(str(folder / "tokenizer.json"))
    return folder
