"""WebDataset shards: a tar in which neighbouring members of one name up to the first dot are one sample.

`key.json` is the sample; `key.jpg`, `key.0.png` … are its pictures, in the order of the archive. Without a `.json`, a
`.txt` beside a picture is its caption. Opening a shard reads the headers only.
"""

from __future__ import annotations

import io
import tarfile
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample
from andes_training.data.lines import read_json

_TEXT = ("json", "txt")


class Tar:
    """An uncompressed tar of samples."""

    def __init__(self, path: Path) -> None:
        """Raises TrainingError: not a tar, a compressed one, or one that ends too early."""
        self.path = path
        self._edges, self._keys = array("Q"), list[str]()
        end = 0
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if not member.isreg():
                        continue
                    key = _split(member.name)[0]
                    if not self._keys or key != self._keys[-1]:
                        self._keys.append(key)
                        self._edges.append(member.offset)
                    end = member.offset_data + member.size
        except (tarfile.TarError, EOFError) as error:
            raise TrainingError(
                "is no whole tar that can be read by index",
                who=str(path),
                why=str(error),
                fix="copy or write it again, without compression",
            ) from None
        self._edges.append(-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, index: int) -> str:
        """`file:key`."""
        return f"{self.path}:{self._keys[index]}"

    def entry(self, index: int) -> Mapping[str, Any]:
        """The sample's members as one entry. Raises BadSample: no JSON and no caption."""
        members = self._members(index)
        pictures = [
            {"path": name, "bytes": data} for name, data in members.items() if name.rpartition(".")[2] not in _TEXT
        ]
        if "json" in members:
            entry = read_json(members["json"], self.where(index))
        elif "txt" in members and pictures:
            user = {"role": "user", "content": [{"type": "image"} for _ in pictures]}
            answer = members["txt"].decode("utf-8", "replace").strip()
            entry = {"messages": [user, {"role": "assistant", "content": answer}]}
        else:
            raise BadSample(
                "is not a sample",
                reason="json",
                who=self.where(index),
                why=f"members: {', '.join(members)}",
                fix="put a .json beside the pictures, or a .txt with their caption",
            )
        return {**entry, "images": pictures} if pictures and "images" not in entry else entry

    def _members(self, index: int) -> dict[str, bytes]:
        """Name after the key -> content."""
        start, end = self._edges[index], self._edges[index + 1]
        with open(self.path, "rb") as file:
            file.seek(start)
            data = file.read(end - start).ljust(end - start, b"\0")
        found = {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                content = archive.extractfile(member)  # of a regular file; folders and links have none
                if content is not None:
                    found[_split(member.name)[1]] = content.read()
        return found


def _split(name: str) -> tuple[str, str]:
    """`folder/key.0.png` -> (`folder/key`, `0.png`)."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, rest.lower()
