"""Rows of benchmark data from files of this machine: VLMEvalKit's TSV, Hugging Face datasets, JSON Lines, JSON.

Nothing is downloaded. Files are read row by row, so that a large one needs no more memory than its pictures under way.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.reading import json_lines, parse_json

Row = Mapping[str, Any]

TOGETHER = 16
"""Rows that are read at once where the format stores them in columns."""
SHORT = 64
"""An `image` of a TSV that is not longer is the index of the row that holds the picture (VLMEvalKit)."""


@frozen
class Rows:
    """Rows of one task.

    Attributes:
        path: where they come from. folder: what paths of pictures are relative to. read: goes through them once.
    """

    path: Path
    read: Callable[[], Iterator[Row]]
    folder: Path = field(factory=Path)

    def __iter__(self) -> Iterator[Row]:
        return self.read()


@frozen(kw_only=True)
class Place:
    """Where a task's data may lie.

    Attributes:
        names: of files and folders without suffix, as their authors name them; letters of either case.
        hub: owner/name of a data set on the Hugging Face Hub, looked up in the local cache only.
        config: folder of that data set, or part of a file's name; empty if there is one. split: of it.
    """

    names: tuple[str, ...]
    hub: str = ""
    config: str = ""
    split: str = "test"


def find(place: Place, data: Path | None) -> Rows:
    """The rows of a task.

    Args:
        data: a folder that holds the file or folder, or itself; None for the Hugging Face cache alone.

    Raises:
        InputError: nothing there; says what was looked for, and where.
        BackendUnavailable: a library that the format needs is missing.
    """
    if data is not None and data.is_file():
        return open_rows(data, place)
    if data is not None:
        if not data.is_dir():
            raise InputError("there is no such file or folder", who=str(data), fix="correct --data")
        if (found := _below(data, place.names)) is not None:
            return open_rows(found, place)
        if _itself(data):
            return open_rows(data, place)
    cached = _cached(place.hub)
    if cached is not None:
        return open_rows(_below(cached, place.names) or cached, place)
    kinds = ".tsv, .jsonl, .json, .parquet or a folder"
    looked = [f"{data}: {', '.join(f'{name}{kinds}' for name in place.names[:2])}"] if data else []
    looked += [f"the Hugging Face cache: {place.hub}"] if place.hub else []
    fix = "give --data FOLDER that holds it; nothing is downloaded here"
    raise InputError("the data of this task was not found", who=place.names[0], why="; ".join(looked), fix=fix)


def _below(folder: Path, names: Sequence[str]) -> Path | None:
    wanted = [name.lower() for name in names]
    entries = {entry.name.lower(): entry for entry in sorted(folder.iterdir())}
    for name in wanted:
        for suffix in (".tsv", ".jsonl", ".json", ".parquet", ""):
            entry = entries.get(f"{name}{suffix}")
            if entry is not None and (entry.is_file() if suffix else entry.is_dir() and _kind(entry)):
                return entry
    return None


def _itself(folder: Path) -> bool:
    """Whether a folder is one data set. One that merely has data sets below it may hold another task's."""
    return _kind(folder) == "saved" or any(next(folder.glob(p), None) for p in ("*.parquet", "data/*.parquet"))


def _kind(folder: Path) -> str:
    """How a folder holds rows: "saved" by `datasets`, "parquet" files, or not at all."""
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "saved"
    return "parquet" if next(folder.rglob("*.parquet"), None) is not None else ""


def _cached(hub: str) -> Path | None:
    """The newest snapshot of a data set in the Hub's cache, without asking the Hub."""
    if not hub:
        return None
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return None  # then there is no cache either that this environment could have filled
    try:
        return Path(snapshot_download(hub, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def open_rows(path: Path, place: Place) -> Rows:
    """Rows of one file or folder, by its kind.

    Raises:
        InputError: a kind that nothing here reads, or a folder without this split.
    """
    if path.is_dir():
        return _saved(path, place) if _kind(path) == "saved" else _columns(path, place)
    if path.suffix == ".tsv":
        return Rows(path, lambda: tsv_rows(path), path.parent)
    if path.suffix == ".jsonl":
        return Rows(path, lambda: jsonl_rows(path), path.parent)
    if path.suffix == ".json":
        return Rows(path, lambda: json_rows(path), path.parent)
    if path.suffix == ".parquet":
        return Rows(path, lambda: parquet_rows([path]), path.parent)
    raise InputError("cannot be read", who=str(path), why=f"the suffix is {path.suffix!r}", fix="give .tsv or .jsonl")


# ---------------------------------------------------------------- text files


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One object a line.

    Raises:
        InputError: a line that is none, or a file that cannot be read.
    """
    try:
        for number, _, line in json_lines(path):
            try:
                row = parse_json(line)
            except ValueError as error:
                raise _bad(path, number, str(error)) from None
            if not isinstance(row, dict):
                raise _bad(path, number, f"got {type(row).__name__}")
            yield row
    except OSError as error:
        raise InputError("cannot be read", who=str(path), why=str(error), fix="check the path") from None


def json_rows(path: Path) -> Iterator[Row]:
    """One list of objects.

    Raises:
        InputError: it is none, or the file cannot be read.
    """
    try:
        rows = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError("cannot be read", who=str(path), why=str(error), fix="give JSON in UTF-8") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError("holds no rows", who=str(path), fix="write a list of JSON objects")
    yield from rows


def _bad(path: Path, number: int, why: str) -> InputError:
    return InputError("is no row", who=f"{path}:{number}", why=why, fix="write one JSON object a line")


def tsv_rows(path: Path) -> Iterator[Row]:
    """Rows of VLMEvalKit's layout: a head, then one row per line; fields that are empty are absent.

    A picture that several rows share is written in one of them, and the others hold its index.

    Raises:
        InputError: no head, or a row with more fields than it, or a picture that no row holds.
    """
    shared = {row["image"] for row in _records(path) if 0 < len(row.get("image", "")) <= SHORT}
    pictures = {r["index"]: r["image"] for r in _records(path) if r.get("index") in shared and len(r["image"]) > SHORT}
    for number, row in enumerate(_records(path), 2):
        if 0 < len(row.get("image", "")) <= SHORT:
            if row["image"] not in pictures:
                why = f"row {number} takes the picture of row {row['image']!r}"
                raise InputError("lacks a picture", who=str(path), why=why, fix="get the whole file")
            row["image"] = pictures[row["image"]]
        yield row


def _records(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 31))
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            head = next(reader, None)
            if not head:
                raise InputError("is empty", who=str(path), fix="give a file with a head and rows")
            for number, fields in enumerate(reader, 2):
                if len(fields) > len(head):
                    why = f"row {number} has {len(fields)} fields, the head {len(head)}"
                    raise InputError("is no table", who=str(path), why=why, fix="separate fields by tabs")
                yield {name: value for name, value in zip(head, fields, strict=False) if value != ""}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("cannot be read", who=str(path), why=str(error), fix="give a TSV in UTF-8") from None


# ---------------------------------------------------------------- Hugging Face


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = 'pip install "andes-evaluation[datasets]"'
        raise BackendUnavailable(f"reading this data needs {name}", why=str(error), fix=fix) from None


def parquet_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Rows of Parquet files in order; pictures stay `{"bytes", "path"}`.

    Raises:
        InputError: a file that is damaged.
    """
    parquet = _library("pyarrow.parquet")
    arrow = _library("pyarrow")
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=TOGETHER):
                    yield from batch.to_pylist()
        except (OSError, arrow.ArrowException, ValueError, LookupError, OverflowError) as error:  # no UTF-8, no date
            raise InputError("cannot be read", who=str(path), why=str(error), fix="get the file again") from None


def _columns(folder: Path, place: Place) -> Rows:
    files = sorted(folder.rglob("*.parquet"))
    if place.config:
        files = [f for f in files if place.config in f.relative_to(folder).as_posix()] or files
    named = [f for f in files if place.split in (f.stem, f.stem.partition("-")[0], f.parent.name)]
    if not named and len(files) == 1:
        named = files
    folders = {f.parent for f in named}
    if len(folders) != 1:
        there = ", ".join(f.relative_to(folder).as_posix() for f in files[:8])
        what = f"no split {place.split!r}" if not named else f"several configurations have a split {place.split!r}"
        raise InputError(what, who=str(folder), why=f"there are {there}", fix="give --data the folder or file of one")
    return Rows(folder, lambda: parquet_rows(named), folder)


def _saved(folder: Path, place: Place) -> Rows:
    datasets = _library("datasets")
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        if place.split not in loaded:
            why = f"it has {', '.join(loaded)}"
            raise InputError(f"no split {place.split!r}", who=str(folder), why=why, fix="give --data a split's folder")
        loaded = loaded[place.split]
    table = loaded.with_format("arrow")  # so that pictures stay as they are encoded

    def read() -> Iterator[Row]:
        for batch in table.iter(batch_size=TOGETHER):
            yield from batch.to_pylist()

    return Rows(folder, read, folder)
