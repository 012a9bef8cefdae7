"""Files of samples, each read by index, whatever their format.

Opening a shard finds where its samples are; a sample's bytes are read when it is asked for. So a file may be larger
than memory, and the order of an epoch is a permutation of indices whatever the format.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from andes_sdk.errors import TrainingError
from andes_training.data.lines import JsonLines
from andes_training.data.tar import Tar

SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".tar")
MOST_CHARACTERS = 4096
"""Of a path. Taken for a pattern, a much longer text may keep Python busy for hours."""
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
    if len(str(path)) > MOST_CHARACTERS:
        why = f"it has {len(str(path))} characters"
        raise TrainingError("is no path", who=f"{str(path)[:80]}…", why=why, fix="correct the recipe")
    if _WILD & set(str(path)) and not os.path.exists(path):  # of a name that is too long, `Path` raises
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    elif os.path.isdir(path):
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
            shard = Tar(path)
        else:
            fix = "unpack it: a compressed tar cannot be read by index" if ".tar" in path.suffixes else "rename it"
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
