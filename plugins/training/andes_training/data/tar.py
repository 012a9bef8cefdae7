"""WebDataset shards: a tar in which neighbouring members of one name up to the first dot are one sample.

`key.json` is the sample; `key.jpg`, `key.0.png` … are its pictures, in the order of the archive. Without a `.json`, a
`.txt` beside a picture is its caption. Opening a shard reads the headers only.

An archive may come from anyone, so its headers are read here, one after the other: only plain files count. A sample
with a link or a sparse file, which is a few bytes that claim to be many, cannot be used.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from andes_sdk.errors import TrainingError
from andes_training.data.bad import BadSample
from andes_training.data.lines import read_json

_TEXT = ("json", "txt")
_PLAIN, _FOLDER, _GLOBAL, _LONG_LINK = (tarfile.REGTYPE, tarfile.AREGTYPE), tarfile.DIRTYPE, tarfile.XGLTYPE, b"K"
MOST_BYTES = 512 * 2**20
"""Of the members of one sample together."""
_MOST_HEADER = 1 << 20
"""Bytes of a long name, or of the records of one header."""


@frozen
class _Member:
    """One file of an archive: where its headers and its content start, and why it is no plain file, or nothing."""

    name: str
    offset: int
    start: int
    size: int
    odd: str


class Tar:
    """An uncompressed tar of samples."""

    def __init__(self, path: Path) -> None:
        """Raises TrainingError: not a tar, a compressed one, or one that ends too early."""
        self.path = path
        self._edges, self._keys = array("Q"), list[str]()
        end = 0
        try:
            with open(path, "rb") as file:
                for member in _members(file, 0, os.fstat(file.fileno()).st_size):
                    key = _split(member.name)[0]
                    if not self._keys or key != self._keys[-1]:
                        self._keys.append(key)
                        self._edges.append(member.offset)
                    end = member.start + member.size
        except (tarfile.TarError, ValueError) as error:
            raise TrainingError(
                "is no whole tar that can be read by index",
                who=str(path),
                why=str(error),
                fix="copy or write it again, without compression",
            ) from None
        self._edges.append(end)

    def __len__(self) -> int:
        return len(self._keys)

    def where(self, index: int) -> str:
        """`file:key`."""
        return f"{self.path}:{self._keys[index]}"

    def entry(self, index: int) -> Mapping[str, Any]:
        """The sample's members as one entry.

        Raises:
            BadSample: no JSON and no caption, a text that is no UTF-8, more than plain files, or two of one name.
        """
        members = self._contents(index)
        pictures = [
            {"path": name, "bytes": data} for name, data in members.items() if name.rpartition(".")[2] not in _TEXT
        ]
        if "json" in members:
            entry = read_json(members["json"], self.where(index))
        elif "txt" in members and pictures:
            user = {"role": "user", "content": [{"type": "image"} for _ in pictures]}
            try:
                answer = members["txt"].decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise BadSample(
                    "its caption is no UTF-8",
                    reason="json",
                    who=self.where(index),
                    why=str(error),
                    fix="write it as UTF-8",
                ) from None
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

    def _contents(self, index: int) -> dict[str, bytes]:
        """Name after the key -> content."""
        found, total = dict[str, bytes](), 0
        try:
            with open(self.path, "rb") as file:
                for member in _members(file, self._edges[index], self._edges[index + 1]):
                    total += member.size
                    if member.odd or total > MOST_BYTES:
                        raise ValueError(f"{member.name} {member.odd or f'makes it more than {MOST_BYTES} bytes'}")
                    if (name := _split(member.name)[1]) in found:
                        raise ValueError(f"two members are named .{name}, whatever the case of their letters")
                    file.seek(member.start)
                    found[name] = file.read(member.size)
        except (tarfile.TarError, ValueError, OSError) as error:
            fix = "write it as plain files, each under a name of its own"
            raise BadSample(
                "cannot be unpacked", reason="json", who=self.where(index), why=str(error), fix=fix
            ) from None
        return found


def _members(file: BinaryIO, start: int, end: int) -> Iterator[_Member]:
    """The members between two places of a tar, without folders; memory does not depend on what it claims.

    Raises:
        tarfile.TarError: a header that is none. ValueError: a size that is none, or a file that ends too early.
    """
    at, first, records = start, start, dict[str, str]()
    while at < end:
        file.seek(at)
        try:
            header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        data, further = at + tarfile.BLOCKSIZE, header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
        size = header.size if further else int(records.get("size", header.size))
        at = data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if size < 0 or data + size > end:
            raise ValueError(f"unexpected end of data: {header.name[:200]!r} claims {size} bytes")
        if header.type in (_GLOBAL, _LONG_LINK):
            continue
        if further or header.type == tarfile.GNUTYPE_LONGNAME:
            if size > _MOST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            body = file.read(size)
            records |= _records(body) if further else {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
            continue
        if header.type != _FOLDER and not header.isdir():
            sparse = header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in records)
            odd = "is a sparse file" if sparse else "is a link or a device" if header.type not in _PLAIN else ""
            yield _Member(records.get("path", header.name), first, data, size, odd)
        first, records = at, {}


def _records(body: bytes) -> dict[str, str]:
    """`length key=value` lines of a PAX header."""
    found, at = dict[str, str](), 0
    while at < len(body) and body[at]:
        length = int(body[at : body.index(b" ", at)])
        key, equals, value = body[body.index(b" ", at) + 1 : at + length - 1].partition(b"=")
        if length < 5 or not equals or at + length > len(body):
            raise ValueError("a PAX header without records")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return found


def _split(name: str) -> tuple[str, str]:
    """`folder/key.0.png` -> (`folder/key`, `0.png`)."""
    folder, slash, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return folder + slash + key, rest.lower()
