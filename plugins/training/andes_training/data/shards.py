"""Files of samples, each read by index: JSON Lines here, Parquet and tar in modules of their own.

Opening a shard finds where its samples are; a sample's bytes are read when it is asked for. So a file may be larger
than memory, and the order of an epoch is a permutation of indices whatever the format.
"""

from __future__ import annotations

import glob
import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".tar")
_WILD = frozenset("*?[")


class Shard(Protocol):
    """One file of samples."""

    @property
    def path(self) -> Path:
        """The file."""

    def __len__(self) -> int:
        """How many samples it holds."""

    def where(self, index: int) -> str:
        """`file:line`, `file:row` or `file:key`, for messages."""

    def entry(self, index: int) -> Mapping[str, Any]:
        """One sample as plain data; pictures beside it are a list `images` of paths, bytes or {"bytes", "path"}.

        Raises:
            BadSample: it cannot be read.
        """


def find_files(path: Path) -> list[Path]:
    """A file, the shards of a folder, or those that a pattern names, in order of their names.

    Raises:
        TrainingError: there is none, or a folder mixes formats.
    """
    if _WILD & set(str(path)) and not path.exists():
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    elif path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
        if len({p.suffix for p in found}) > 1:
            raise TrainingError(
                "the folder mixes formats",
                who=str(path),
                why=", ".join(sorted({p.suffix for p in found})),
                fix="name them by a pattern, such as data/*.parquet",
            )
    else:
        return [path]
    if not found:
        raise TrainingError("no data file is there", who=str(path), fix=f"known suffixes: {', '.join(SUFFIXES)}")
    return found


def open_shard(path: Path) -> Shard:
    """Open a file by its suffix.

    Raises:
        TrainingError: it cannot be read, holds no sample, or has an unknown suffix.
    """
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            shard: Shard = JsonLines(path)
        elif path.suffix == ".parquet":
            from andes_training.data.parquet import Parquet

            shard = Parquet(path)
        elif path.suffix == ".tar":
            from andes_training.data.tar import Tar

            shard = Tar(path)
        else:
            fix = "unpack it: a compressed tar cannot be read by index" if ".tar" in path.suffixes else "rename it"
            raise TrainingError(
                "the format of the data is unknown", who=str(path), why=f"known: {', '.join(SUFFIXES)}", fix=fix
            )
    except OSError as error:
        raise TrainingError(
            "the data cannot be read", who=str(path), why=str(error), fix="make it, or correct its path"
        ) from None
    if not len(shard):
        raise TrainingError("holds no sample", who=str(path), fix="write one JSON object per line")
    return shard


class JsonLines:
    """One JSON object a line; empty lines count as lines and hold no sample."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lines = array("Q"), array("Q")
        start = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)

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
    """A JSON object. Raises BadSample: it is none."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSample(
            "is not JSON", reason="json", who=where, why=str(error), fix="correct or delete the line"
        ) from None
    if not isinstance(entry, dict):
        raise BadSample("is not a sample", reason="json", who=where, fix="write one JSON object per line")
    return entry
