"""JSON Lines, each line read by index."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from andes_sdk.reading import decoded, json_lines, parse_json
from andes_training.data.bad import BadSample


class JsonLines:
    """One JSON object a line; empty lines count as lines and hold no sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines = array("Q"), array("Q")
        for number, start, _ in json_lines(path):
            self._starts.append(start)
            self._lines.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        """`file:line`."""
        return f"{self.path}:{self._lines[index]}"

    def entry(self, index: int) -> Mapping[str, Any]:
        """One line. Raises BadSample: it is not a JSON object."""
        with open(self.path, "rb") as file:
            file.seek(self._starts[index])
            line = file.readline()
        return read_json(line, self.where(index))


def read_json(text: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object. Raises BadSample: it is none, or a key stands twice in it."""
    try:
        entry = parse_json(text)
        json.loads(decoded(text), object_pairs_hook=_once)
    except ValueError as error:
        raise BadSample(
            "is not JSON", reason="json", who=where, why=str(error), fix="correct or delete the line"
        ) from None
    if not isinstance(entry, dict):
        raise BadSample("is not a sample", reason="json", who=where, fix="write one JSON object per line")
    return entry


def _once(pairs: Sequence[tuple[str, Any]]) -> None:
    """Refuse an object of which Python would keep the last of several values."""
    if len(dict.fromkeys(name for name, _ in pairs)) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
