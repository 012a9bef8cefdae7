"""Files of samples, each read by index, whatever their format.

Opening a shard finds where its samples are; a sample's bytes are read when it is asked for. So a file may be larger
than memory, and the order of an epoch is a permutation of indices whatever the format.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from andes_sdk.errors import TrainingError
from andes_training.data.lines import JsonLines
from andes_training.data.tar import Tar

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".tar")
MOST_CHARACTERS = 4096
"""Of a path. Taken for a pattern, a much longer text may keep Python busy for hours."""
_WILD = frozenset("*?[")
_DATA = (*SUFFIXES, ".json", ".csv", ".tsv", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip")
"""Suffixes of what someone may take for data."""
_PICTURES = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FEW = 1000
"""Entries of a folder within a folder that are looked at."""


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
        TrainingError: there is none, or a folder mixes formats, or holds data that nothing here reads.
    """
    if len(str(path)) > MOST_CHARACTERS:
        why = f"it has {len(str(path))} characters"
        raise TrainingError("is no path", who=f"{str(path)[:80]}…", why=why, fix="correct the recipe")
    if _WILD & set(str(path)) and not os.path.exists(path):  # of a name that is too long, `Path` raises
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    elif os.path.isdir(path):
        found = _shards_in(path)
    else:
        return [path]
    if not found:
        raise TrainingError("no data file is there", who=str(path), fix=f"known suffixes: {', '.join(SUFFIXES)}")
    return found


def _shards_in(folder: Path) -> list[Path]:
    """The shards of a folder; what else lies there is told, but for hidden files and pictures."""
    there = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in there if _suffix(p) in SUFFIXES]
    others = [p for p in there if p not in set(found) and _suffix(p) not in _PICTURES]
    unread = [p.name for p in others if (_holds_data(p) if p.is_dir() else _suffix(p) in _DATA)]
    if formats := sorted({_suffix(p) for p in found})[1:]:
        raise TrainingError(
            "the folder mixes formats",
            who=str(folder),
            why=", ".join([_suffix(found[0]), *formats]),
            fix="name them by a pattern, such as data/*.parquet",
        )
    if found and unread:
        raise TrainingError(
            "the folder holds data that is not read",
            who=str(folder),
            why=", ".join(unread[:20]) + (f" and {len(unread) - 20} more" if len(unread) > 20 else ""),
            fix=f"unpack or convert it (known suffixes: {', '.join(SUFFIXES)}), or name shards by a pattern",
        )
    if found and (names := tuple(p.name for p in others if not p.is_dir())):
        _tell_once(folder, names)
    return found


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _holds_data(folder: Path) -> bool:
    """Whether a folder within a folder of shards holds shards of its own, as far as a short look tells."""
    return any(_suffix(p) in SUFFIXES for p in islice(folder.iterdir(), _FEW))


@lru_cache(maxsize=1024)
def _tell_once(folder: Path, names: tuple[str, ...]) -> None:
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    logging.getLogger(__name__).warning("%s: not read as data: %s", folder, listed)


def open_shard(path: Path) -> Shard:
    """Open a file by its suffix.

    Raises:
        TrainingError: it cannot be read, holds no sample, or has an unknown suffix.
    """
    try:
        if _suffix(path) in (".jsonl", ".ndjson"):
            shard: Shard = JsonLines(path)
        elif _suffix(path) == ".parquet":
            from andes_training.data.parquet import Parquet

            shard = Parquet(path)
        elif _suffix(path) == ".tar":
            shard = Tar(path)
        else:
            fix = "unpack it: a compressed tar cannot be read by index" if ".tar" in path.name.lower() else "rename it"
            raise TrainingError(
                "the format of the data is unknown", who=str(path), why=f"known: {', '.join(SUFFIXES)}", fix=fix
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TrainingError(
            "the data cannot be read", who=str(path), why=str(error), fix="make it, or correct its path"
        ) from None
    if not len(shard):
        raise TrainingError("holds no sample", who=str(path), fix="write one JSON object per line")
    return shard
