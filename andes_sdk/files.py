"""Files of a folder, read when they are asked for, and files written whole."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import field, frozen

from andes_sdk.errors import CheckpointError, ConfigError, InputError
from andes_sdk.reading import parse_json


def absolute(path: Path) -> Path:
    """What a path means now, for what is read later, perhaps from another folder. Links are not followed."""
    return path.absolute()


def at_home(path: str | os.PathLike[str], who: str = "path") -> Path:
    """A path whose `~` or `~user` is that user's folder; where there is no such user it is a name like any other.

    Raises:
        ConfigError: it is no path; `who` is the argument that should be one.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"expected a path, got {path!r}", who=who, fix="give a text or a pathlib.Path")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def regular(path: Path) -> Path:
    """The same path, of a plain file: to open a device or a pipe may never end.

    Raises:
        OSError: it is none, or not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no regular file")
    return path


def confined(name: object) -> bool:
    """Whether a name from outside names something below a folder, and nothing else, on every system."""
    parts = name.split("/") if isinstance(name, str) else [""]
    return not (any(mark in part for part in parts for mark in "\\:\0") or {"", ".", ".."} & set(parts))


@frozen
class FolderFiles:
    """The files of a folder, wherever the process goes; an `andes_sdk.types.Files`.

    Attributes:
        folder: absolute.
    """

    folder: Path = field(converter=absolute)

    def __contains__(self, name: object) -> bool:
        return confined(name) and os.path.isfile(self.folder / str(name))

    def where(self, name: str = "") -> str:
        """Path of a file, or of the folder."""
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        """Content of a file. Raises CheckpointError if it cannot be read, or lies elsewhere."""
        try:
            if not confined(name):
                raise OSError("the name leaves the folder")
            return regular(self.folder / name).read_bytes()
        except OSError as error:
            what = "cannot be read"
            raise CheckpointError(what, who=self.where(name), why=str(error), fix="check the path") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file, readable by all, and the folders above it. Readers see the old file or the new one, never half.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with appearing_file(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says while a file is written, as one of our errors.

    Raises:
        InputError: naming the file.
    """
    try:
        yield
    except OSError as error:
        fix = "make room there, or choose another place"
        raise InputError("cannot be written", who=str(path), why=error.strerror or str(error), fix=fix) from None


@contextlib.contextmanager
def appearing_file(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that takes its place, readable by all, when the block ends without an error.

    Folders above it are made. On any error what stood at `path` stays, and nothing is left beside it.

    Raises:
        OSError: it cannot be written, or `path` is a folder or a device.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # the name of a device must stay one
        regular(path)
    temporary = path.with_name(f".{path.name}.partial-{_mark(path)}")
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place when the block ends without an error.

    What stood there is replaced at the very end, and stays on any error. After a crash between the two renames it lies
    beside the folder as `.<name>.old-*`.

    Raises:
        OSError: it cannot be written.
    """
    target = folder.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = _mark(target)
    temporary, old = (target.with_name(f".{target.name}.{kind}-{mark}") for kind in ("partial", "old"))
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)


def _mark(target: Path) -> str:
    """A name for what this process is about to write; removes, and tells, what stopped ones left beside `target`."""
    host = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        found = re.search(r"\.(partial|old)-(?:([0-9a-f]{8})-(\d+)-)?[0-9a-f]{8}$", left.name)
        if found is None or (found[1] == "old" and not target.exists()):  # then it is all that is left
            continue
        with contextlib.suppress(OSError):  # another process was quicker
            if (found[2] == host and not _lives(int(found[3]))) or time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
                logging.getLogger(__name__).warning("removed %s, which a stopped run had left", left)
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@frozen
class Journal:
    """JSON lines that are added one by one. A process that is killed leaves at most a torn last line, which is dropped.

    Attributes:
        path: the file; it need not be there.
    """

    path: Path

    def add(self, row: Any) -> None:
        """Add a line, at once: nothing is held back. Lone surrogates are written as escapes.

        Raises:
            InputError: it cannot be written; the rows before it stay, whole.
        """
        content = (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace")
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                whole = os.fstat(file.fileno()).st_size
                try:
                    while content:  # a disk that is almost full takes a part, and says so the next time
                        content = content[file.write(content) :]
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(whole)
                    raise

    def rows(self, wanted: Callable[[Any], bool] = lambda row: True) -> list[Any]:
        """Its whole lines that are wanted; none if there is no such file.

        Raises:
            InputError: it cannot be read, or holds a line that is not JSON, or lacks what `wanted` looks up.
        """
        return [row for _, row in self._lines(wanted)]

    def keep(self, wanted: Callable[[Any], bool]) -> list[Any]:
        """Drop every row that is not wanted, and a torn last line -> the rows kept, in order.

        Raises:
            InputError: as `rows`, or it cannot be written; the file stays as it is.
        """
        kept = list(self._lines(wanted))
        content = b"".join(line for line, _ in kept)
        if self.path.exists() and len(content) != self.path.stat().st_size:
            with writing(self.path):
                write_atomically(self.path, content)
        return [row for _, row in kept]

    def _lines(self, wanted: Callable[[Any], bool]) -> Iterator[tuple[bytes, Any]]:
        try:
            whole = regular(self.path).read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        except OSError as error:
            raise InputError("cannot be read", who=str(self.path), why=str(error), fix="check the path") from None
        for number, line in enumerate(whole, 1):  # only a line feed ends one: what a disk makes of a byte does not
            where, fix = f"{self.path}:{number}", "repair or remove the line"
            try:
                row = parse_json(line)
                kept = wanted(row)
            except ValueError as error:
                raise InputError("is no line of JSON", who=where, why=str(error), fix=fix) from None
            except (LookupError, TypeError) as error:
                why = f"{type(error).__name__}: {error}"
                raise InputError("is no line of this file", who=where, why=why, fix=fix) from None
            if kept:
                yield line + b"\n", row


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
