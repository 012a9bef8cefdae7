"""`screens.jsonl`: a line per rendered screen, added one by one, read one at a time however long the file is."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError
from andes_sdk.files import Journal, writing
from andes_sdk.reading import parse_json


@frozen
class Lines:
    """The lines of a folder's screens.

    Attributes:
        path: the file; it need not be there.
    """

    path: Path

    def add(self, row: dict[str, Any]) -> None:
        """Add a line, at once."""
        Journal(self.path).add(row)

    def places(self, wanted: Container[str], *, failed: bool = True) -> dict[str, int]:
        """Where the last line of each wanted screen begins. A torn one, of a run that was killed, is cut off.

        Args:
            failed: also those of pages that failed.

        Raises:
            InputError: the file cannot be read, or holds a line that is none.
        """
        found, place = {}, 0
        if not self.path.exists():
            return {}
        with writing(self.path), open(self.path, "r+b") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    file.truncate(place)
                    os.fsync(file.fileno())
                    break
                row = self._parsed(line, number)
                if row["id"] in wanted and (failed or "error" not in row):
                    found[row["id"]] = place
                place += len(line)
        return found

    def read(self, places: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The lines that begin at these places, in this order."""
        with open(self.path, "rb") as file:
            for place in places:
                file.seek(place)
                yield self._parsed(file.readline(), 0)

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = parse_json(line)
        except ValueError as error:
            row, why = None, str(error)
        else:
            why = "it names no screen"
        if not isinstance(row, dict) or not isinstance(row.get("id"), str):
            fix = "remove the line; its screen is then rendered again"
            raise InputError("is no line of a screen", who=f"{self.path}:{number}", why=why, fix=fix)
        return row
