"""Files of a folder, read when they are asked for, and files written whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from attrs import field, frozen

from andes_sdk.errors import CheckpointError


def absolute(path: Path) -> Path:
    """What a path means now, for what is read later, perhaps from another folder. Links are not followed."""
    return path.absolute()


@frozen
class FolderFiles:
    """The files of a folder, wherever the process goes; an `andes_sdk.types.Files`.

    Attributes:
        folder: absolute.
    """

    folder: Path = field(converter=absolute)

    def __contains__(self, name: object) -> bool:
        return (self.folder / str(name)).is_file()

    def where(self, name: str = "") -> str:
        """Path of a file, or of the folder."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """Content of a file. Raises CheckpointError if it cannot be read."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(
                "cannot be read", who=self.where(name), why=str(error), fix="check the path"
            ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, readable by all, and the folders above it. Readers see the old file or the new one, never half.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
