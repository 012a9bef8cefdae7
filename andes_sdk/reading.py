"""Text from outside: JSON, TOML and JSON Lines, with one meaning and the same limits wherever they are read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

MOST_LEVELS = 64
"""Lists and tables inside one another. What follows a value down, such as structuring it, has no limit of its own."""
MOST_BITS = 14_000
"""Of a whole number: about as many as Python takes in decimal digits."""


def parse_json(text: bytes | str) -> Any:
    """JSON in UTF-8 -> plain data; a byte-order mark before it is skipped.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    return _parsed(json.loads, text, "objects")


def parse_toml(text: bytes | str) -> dict[str, Any]:
    """TOML in UTF-8 -> plain data; a byte-order mark before it is skipped.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    found: dict[str, Any] = _parsed(tomllib.loads, text, "tables")
    _short(found)
    return found


def value_of(text: str) -> Any:
    """The value that a user wrote on a command line: TOML, or plain text where it is none."""
    try:
        return parse_toml(f"v = {text}")["v"]
    except ValueError:
        return text


def json_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Lines of JSON Lines that are not blank: number from 1, where it starts in bytes, content.

    Only a line feed ends a line: U+2028 and others may stand inside a text.

    Raises:
        OSError: it cannot be read.
    """
    start = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
                yield number, start, line
            start += len(line)


def decoded(text: bytes | str) -> str:
    """UTF-8 as text, without a byte-order mark.

    Raises:
        ValueError: it is no UTF-8.
    """
    return (text if isinstance(text, str) else text.decode("utf-8")).removeprefix("\ufeff")


def bounded(found: Any) -> None:
    """Refuse what is nested too deeply for those who follow it down: data that no reader of this module gave.

    Raises:
        ValueError: more than `MOST_LEVELS` lists and tables inside one another.
    """
    level = [found]
    for _ in range(MOST_LEVELS + 1):
        nested = [value for value in level if isinstance(value, Mapping | list | tuple)]
        if not nested:
            return
        inner = (value.values() if isinstance(value, Mapping) else value for value in nested)
        level = list({id(value): value for values in inner for value in values}.values())  # of a circle each once
    raise ValueError(f"more than {MOST_LEVELS} lists and tables inside one another")


def _short(value: Any) -> None:
    """Refuse what TOML has and JSON has not: dates, and hexadecimal numbers that Python does not write out."""
    if not isinstance(value, str | int | float | dict | list):
        raise ValueError(f"{value} is a date or a time: write it in quotes")
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ValueError(f"a number of {value.bit_length()} bits")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _short(inner)


def _parsed(loads: Callable[[str], Any], text: bytes | str, tables: str) -> Any:
    try:
        found = loads(decoded(text))
    except RecursionError:
        raise ValueError(f"more than {MOST_LEVELS} lists and {tables} inside one another") from None
    bounded(found)
    return found
