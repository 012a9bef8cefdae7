"""What data files held when a state was saved, so that a run does not go on with others unawares."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from andes_training.data.shards import find_files

if TYPE_CHECKING:
    from andes_training.recipe import DataRecipe

WHOLE = 64 << 20
"""Files up to so many bytes are hashed whole; of larger ones 64 pieces of 1 MiB, the first and the last among them."""


def fingerprints(recipes: Sequence[DataRecipe], folder: Path) -> dict[str, str]:
    """Each data file of a stage, relative to the recipe -> its size and a hash of its content. Pictures beside it are
    not read.

    Raises:
        TrainingError: no such files. OSError: one cannot be read.
    """
    files = {path for recipe in recipes for path in find_files(folder / recipe.path)}
    return {os.path.relpath(path, folder or "."): fingerprint(path) for path in sorted(files)}


def fingerprint(path: Path) -> str:
    """`size:sha256`."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            return f"{size}:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        made = hashlib.sha256()
        for piece in range(64):
            file.seek(piece * (size - (1 << 20)) // 63)
            made.update(file.read(1 << 20))
    return f"{size}:{made.hexdigest()}"
