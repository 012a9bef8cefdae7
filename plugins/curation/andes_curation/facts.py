"""Facts of samples, computed once: by processes here, or by Ray on many machines; kept by content on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from andes_training.data.bad import BadSample
from andes_training.data.samples import Samples
from attrs import frozen

from andes_curation.references import absolute, is_path, pictures, shape_problem
from andes_sdk.errors import AndesError, TrainingError
from andes_sdk.reading import parse_json
from andes_sdk.types import TableFilter

ENGINES = ("local", "ray")
BLOCK, WAITING_BLOCK = 4096, 128
"""Samples after which facts are written down; fewer where each one costs a request."""

MAKE = "CREATE TABLE IF NOT EXISTS facts (version TEXT, sample TEXT, value TEXT, PRIMARY KEY(version, sample))"

Work = Callable[[int], str]
"""Index of a sample -> JSON text."""


@frozen
class Identify:
    """Digest of a sample: its JSON and the bytes of its pictures, wherever they lie."""

    samples: Samples

    def __call__(self, index: int) -> str:
        """`{"digest": …}`, or `{"broken": why}` for a line that cannot be read."""
        try:
            entry = entry_of(self.samples, index)
        except BadSample as error:
            return json.dumps({"broken": f"{error.what}: {error.why}" if error.why else error.what})
        sha = hashlib.sha256(json.dumps(entry, sort_keys=True, default=_bytes_digest).encode())
        for source in pictures(entry):
            if is_path(source) and os.path.isfile(source):
                sha.update(Path(source).read_bytes())
        return json.dumps({"digest": sha.hexdigest()})


@frozen
class Describe:
    """What a filter says of a sample."""

    samples: Samples
    filter: TableFilter

    def __call__(self, index: int) -> str:
        """The facts as JSON. Raises TrainingError: the filter fails, or its facts are no JSON data."""
        try:
            return json.dumps(self.filter.describe(entry_of(self.samples, index)), allow_nan=False)
        except AndesError:
            raise
        except Exception as error:
            who = getattr(self.filter, "name", type(self.filter).__name__)
            raise TrainingError(
                "the filter failed", who=f"{who}, {self.samples.where(index)}", why=f"{type(error).__name__}: {error}",
                fix="report it to the plugin's author",
            ) from error  # fmt: skip


def entry_of(samples: Samples, index: int) -> dict[str, Any]:
    """A sample with absolute picture paths. Raises BadSample: it cannot be read."""
    sample = samples[index]
    if why := shape_problem(sample.entry):
        raise BadSample("is not a sample", who=sample.where, why=why, fix="write lists, or leave them out")
    return absolute(sample.entry, sample.folder)


def _bytes_digest(value: Any) -> str:
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    raise TypeError(f"{type(value).__name__} is no JSON data")


@frozen
class Engine:
    """Runs work on samples.

    Attributes:
        name: "local" (processes on this machine, through Hugging Face datasets) or "ray" (Ray Data; the cluster that
            RAY_ADDRESS names, or one started here).
        workers: processes, or requests at a time; 0 for one per core.
    """

    name: str = "local"
    workers: int = 0

    def run(self, work: Work, indices: Sequence[int], *, waits: bool = False) -> Iterator[tuple[int, str]]:
        """Index and result, in order.

        Raises:
            TrainingError: a library is missing. AndesError: whatever the work raises.
        """
        if not indices:
            return iter(())
        if self.name == "ray":
            return _ray(work, indices, self.workers, waits)
        if waits:
            with ThreadPoolExecutor(self.workers or 8) as pool:
                return iter(list(zip(indices, pool.map(work, indices), strict=True)))
        return _processes(work, indices, self.workers or os.cpu_count() or 1)


def _processes(work: Work, indices: Sequence[int], workers: int) -> Iterator[tuple[int, str]]:
    try:
        import datasets
    except ImportError as error:
        raise _missing("datasets", error) from None
    table = datasets.Dataset.from_dict({"index": list(indices)})
    datasets.disable_progress_bars()
    count = min(workers, max(1, len(indices) // 64))
    # results are kept by content elsewhere: datasets need not find out whether it has seen this function
    done = table.map(
        _Described(work), num_proc=count if count > 1 else None, load_from_cache_file=False, new_fingerprint="facts"
    )
    return iter(list(zip(indices, done["value"], strict=True)))


@frozen
class _Described:
    work: Work

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {"value": self.work(row["index"])}


@frozen
class _NumberedRow:
    work: Work

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"index": row["index"], "value": self.work(row["index"]), "error": None}
        except AndesError as error:  # Ray would wrap it, and retry
            return {"index": row["index"], "value": None, "error": json.dumps(error.to_dict())}


def _ray(work: Work, indices: Sequence[int], workers: int, waits: bool) -> Iterator[tuple[int, str]]:
    try:
        import ray
    except ImportError as error:
        raise _missing("ray", error) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, num_cpus=workers or None if _alone() else None)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"index": i} for i in indices], override_num_blocks=max(1, len(indices) // 256))
    done = rows.map(_NumberedRow(work), num_cpus=0.1 if waits else 1)
    values: dict[int, str] = {}
    for row in done.iter_rows():
        if row["error"] is not None:
            facts = parse_json(row["error"])
            raise TrainingError(facts["what"], who=facts["who"], why=facts["why"], fix=facts["fix"])
        values[row["index"]] = row["value"]
    return iter([(i, values[i]) for i in indices])


def _alone() -> bool:
    """Whether Ray will be started here, and not on a cluster."""
    return "RAY_ADDRESS" not in os.environ


def _missing(library: str, error: ImportError) -> TrainingError:
    """The extra has the library's name."""
    fix = f'pip install "andes-curation[{library}]"'
    return TrainingError(f"the engine needs {library}", who="curate", why=str(error), fix=fix)


def _sum(*texts: str) -> str:
    """sha256 of what a row says: a damaged one is made again."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


class Facts:
    """Facts by (filter version, content of the sample), in an SQLite file that survives whatever stops a run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reading():
            self._db = sqlite3.connect(path)
            try:
                self._db.execute(MAKE)
            except sqlite3.DatabaseError:
                self._db.close()
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raises TrainingError: the file is damaged, which shows wherever a page of it is read."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            fix = "delete the file; they are made again"
            raise TrainingError("the kept facts cannot be read", who=str(self._path), why=str(error), fix=fix) from None

    def known(self, version: str, digests: Iterable[str]) -> dict[str, str]:
        """Digest -> JSON, of those that are there as they were written."""
        found = {}
        for digest in digests:
            with self._reading():
                row = self._db.execute("SELECT value FROM facts WHERE version = ? AND sample = ?", (version, digest))
                value = hit[0] if (hit := row.fetchone()) else None
            if isinstance(value, str) and value[:64] == _sum(version, digest, value[64:]):
                found[digest] = value[64:]
        return found

    def keep(self, version: str, rows: Iterable[tuple[str, str]]) -> None:
        """Write (digest, JSON) pairs down."""
        summed = [(version, digest, _sum(version, digest, text) + text) for digest, text in rows]
        with self._reading(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", summed)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
