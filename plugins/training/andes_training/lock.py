"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from andes_sdk.errors import TrainingError
from andes_training.state import saving

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder until the block ends, or the process does, however it dies.

    Of the processes of one run the first one calls this. Where the system or the disk has no locks, nothing is held.

    Raises:
        TrainingError: another run holds it, or the lock's file cannot be written.
    """
    if fcntl is None:
        yield
        return
    with saving(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(folder, os.pread(handle, 20, 0).decode("ascii", "replace")) from None
        except OSError:  # a disk without locks
            yield
            return
        with contextlib.suppress(OSError):  # on a full disk the number is missing, and no more
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _taken(folder: Path, holder: str) -> TrainingError:
    why = f"process {holder} trains in it" if holder else "another process trains in it"
    return TrainingError(
        "another run is at work in the folder", who=str(folder), why=why, fix="wait for it, or choose another --out"
    )
