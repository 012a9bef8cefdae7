"""The tokenizer of andes-nano: bytes, and the words that questions and answers are made of.

What stands on a page is spelt, letter by letter, so that the model can match and copy it. Words of templates are one token
each. There are no merges: a piece is a word of the list, or bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import language
import tasks
import texts
from andes_andesui import tasks as screens
from andes_qwen3.vocabulary import BYTES, PATTERN, SPECIALS, added_token, byte_alphabet, byte_level, split
from real import PHOTOS
from tokenizers import Regex, pre_tokenizers

CONTENT = SPECIALS.index("<tool_call>")
"""The first special token that may stand in an answer."""
EASY = (
    "what color is the shape? what is the color of the shape? what shape is in the image? what shape is present? "
    "is there a shape? does the image contain a shape? is a shape present? does the image not contain a shape?"
)


def corpus() -> Iterator[str]:
    """Every template and fixed answer, with nothing that a page shows."""
    for value in vars(texts).values():
        if isinstance(value, tuple):
            yield from value
    yield from texts.WORDS
    yield from (f" {word}" for word in texts.WORDS)
    yield from (*(t for some in screens.POINT.values() for t in some), *screens.REFER, *screens.DESCRIBE, screens.SCREEN)
    for name, (wishes, fields) in language.CALLS.items():
        yield from (*wishes, json.dumps({"name": name, "arguments": dict.fromkeys(fields, "")}))
    yield from language.QUESTIONS
    yield from (*PHOTOS, *(f" {name}" for name in PHOTOS), EASY)
    for _, labels, _ in tasks.tables():
        yield from (*labels, *(f" {label}" for label in labels))
    yield texts.BOX.format(0, 0, 0, 0)
    yield '<|box_start|>(1,1),(1,1)<|box_end|>?.Is "X"? "X". Yes. No. The first. The second. “X”? “X”.'
    yield from ("The picture shows a circle.", "From left to right: a circle", "The first shows a circle, the second")


def vocabulary() -> dict[str, int]:
    """Byte-level characters -> id: the 256 bytes, then the words."""
    byte = byte_alphabet()
    pieces = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    words = {piece for text in corpus() for piece, _ in pieces.pre_tokenize_str(text)}
    written = {"".join(byte[b] for b in word.encode()) for word in words}
    return {token: n for n, token in enumerate([*byte.values(), *sorted(w for w in written if len(w) > 1)])}


def write(folder: Path) -> Path:
    """Write `tokenizer.json` -> its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    known = vocabulary()
    added = [added_token(len(known) + n, text, special=n < CONTENT) for n, text in enumerate(SPECIALS)]
    made = byte_level(known, [], added, steps=[split(PATTERN), BYTES], nfc=True, ignore_merges=True)
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return folder
