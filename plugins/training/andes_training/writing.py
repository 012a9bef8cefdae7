"""Files for people, written by commands that train nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from andes_sdk.errors import TrainingError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a full disk, a folder or a place that cannot be written raises into our error.

    Raises:
        TrainingError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        fix = "make room, or choose another path"
        raise TrainingError("cannot be written", who=str(path), why=str(error), fix=fix) from error
