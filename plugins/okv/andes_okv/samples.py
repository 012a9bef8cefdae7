"""Data for `andes okv fit`: JSON Lines of conversations, and plain text files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from andes_sdk.errors import InputError
from andes_sdk.files import regular
from andes_sdk.reading import decoded, json_lines, parse_json
from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def count(files: Sequence[Path], limit: int | None) -> int:
    """Samples in all.

    Raises:
        InputError: a file that cannot be read.
    """
    try:
        total = sum(sum(1 for _ in json_lines(f)) if f.suffix == ".jsonl" else 1 for f in map(regular, files))
    except OSError as error:
        raise InputError(
            "cannot be read", who=str(error.filename or files[0]), why=str(error), fix="check the path"
        ) from None
    return total if limit is None else min(limit, total)


def samples(pipeline: Pipeline, files: Sequence[Path], limit: int | None) -> Iterator[Inputs]:
    """Prompts of a model: `{"messages": […]}` or `{"text": "…"}` a line, any other file as one text.

    Pictures are named from the folder of their file.

    Raises:
        InputError: a line that is no such sample, with its place.
    """
    left = limit
    for file in files:
        for where, one in _lines(file):
            if left is not None and left <= 0:
                return
            left = None if left is None else left - 1
            try:
                yield _prompt(pipeline, one, file.parent)
            except InputError as error:
                raise error.within(where) from None


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix != ".jsonl":
        try:
            yield str(file), {"text": decoded(file.read_bytes())}
        except ValueError as error:
            raise InputError("is no text", who=str(file), why=str(error), fix="give UTF-8, or a .jsonl file") from None
        return
    for number, _, line in json_lines(file):
        where = f"{file}:{number}"
        try:
            yield where, parse_json(line)
        except ValueError as error:
            raise InputError("is no line of JSON", who=where, why=str(error), fix="repair the line") from None


def _prompt(pipeline: Pipeline, one: Any, folder: Path) -> Inputs:
    if isinstance(one, dict) and isinstance(one.get("text"), str):
        ids = pipeline.tokenizer.encode(one["text"])
        if not ids:
            raise InputError("an empty text", fix="remove it")
        return Inputs(ids=torch.tensor(ids))
    if isinstance(one, dict) and isinstance(one.get("messages"), list):
        return pipeline.prepare(_placed(one["messages"], folder))
    raise InputError("is no sample", why="it has neither messages nor text", fix='write {"messages": [...]} a line')


def _placed(messages: Any, folder: Path) -> Any:
    """The same messages with paths of pictures made whole."""
    if isinstance(messages, list):
        return [_placed(part, folder) for part in messages]
    if isinstance(messages, dict):
        placed = {key: _placed(value, folder) if isinstance(value, list) else value for key, value in messages.items()}
        if placed.get("type") == "image" and isinstance(placed.get("image"), str):
            placed["image"] = str(folder / placed["image"])
        return placed
    return messages


def text_of(argument: str) -> str:
    """The text itself, or the content of the file after an @.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    if not argument.startswith("@"):
        return argument
    try:
        return decoded(regular(Path(argument[1:])).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("cannot be read", who=argument[1:], why=str(error), fix="give a text file in UTF-8") from None
