"""Files of a folder, read when they are asked for."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from andes_sdk.errors import CheckpointError


@frozen
class FolderFiles:
    """The files of a folder; an `andes_sdk.types.Files`."""

    folder: Path

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
