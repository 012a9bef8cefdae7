"""Conversations that both sides answer: from a file, or a few made up."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from andes_sdk.errors import InputError
from andes_sdk.files import Journal

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

Message = Mapping[str, Any]


def read(path: Path, limit: int) -> list[list[Message]]:
    """The user's side of conversations of a file of JSON Lines, in LiteRT-LM's words.

    Raises:
        InputError: no such file, or lines without messages; a picture that is no path.
    """
    if not path.is_file():
        raise InputError("there is no such file", who=str(path), fix="check the path")
    rows = Journal(path).rows(lambda row: bool(row["messages"]))[:limit]
    return [_theirs(row["messages"], path.parent) for row in rows]


def _theirs(messages: Sequence[Message], folder: Path) -> list[Message]:
    """Up to the last turn of the user, pictures as absolute paths."""
    last = max((n for n, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    if last < 0:
        raise InputError("has no turn of a user", who="messages", fix="give each line a question")
    out: list[Message] = []
    for message in messages[: last + 1]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        out.append({"role": message["role"], "content": [_part(part, folder) for part in parts]})
    return out


def _part(part: Message, folder: Path) -> Message:
    if part.get("type") != "image":
        return {"type": "text", "text": part["text"]}
    if not isinstance(part["image"], str):
        raise InputError("a picture must be a path here", who="messages", fix="save it, and name the file")
    return {"type": "image", "path": str((folder / part["image"]).absolute())}


@contextmanager
def some(pipeline: Pipeline, count: int = 4) -> Iterator[list[list[Message]]]:
    """A few questions about pictures of coloured blocks, of the least size that the model sees."""
    least = max(pipeline.processor.preprocessor.min_size, pipeline.processor.preprocessor.block)
    with tempfile.TemporaryDirectory() as folder:
        made: list[list[Message]] = []
        for number in range(count):
            small = Image.fromarray(np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8))
            path = Path(folder, f"{number}.png")
            small.resize((least, least), Image.Resampling.NEAREST).save(path)
            question = {"type": "text", "text": "What is in the picture?"}
            made.append([{"role": "user", "content": [{"type": "image", "path": str(path)}, question]}])
        yield made
