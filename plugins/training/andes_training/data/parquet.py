"""Parquet files, as Hugging Face datasets writes them: `messages` nested or as JSON text, pictures as bytes.

A row group is the smallest part that can be read, so a few of the last ones are kept decoded. Needs pyarrow.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from andes_sdk.errors import TrainingError
from andes_sdk.reading import bounded, parse_json
from andes_training.data.bad import BadSample

JSON_COLUMNS = ("messages", "conversations", "prompt", "chosen", "rejected")
"""Columns of conversations; a text in one of them is read as JSON if it is a list."""
CACHE_BYTES = 512 * 2**20
_groups: OrderedDict[tuple[Path, int, int], Any] = OrderedDict()
_lock = threading.Lock()


class Parquet:
    """One Parquet file; `images` or `image` hold pictures as bytes, {"bytes", "path"}, or paths."""

    def __init__(self, path: Path) -> None:
        """Raises TrainingError: pyarrow is missing, or the file is damaged."""
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise TrainingError(
                "reading Parquet needs pyarrow", who=str(path), why=str(error), fix='pip install "andes-training[data]"'
            ) from None
        self.path, self._changed = path, path.stat().st_mtime_ns
        try:
            with ParquetFile(path) as file:
                meta = file.metadata
                rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        except pyarrow.ArrowException as error:
            raise TrainingError("is no Parquet file", who=str(path), why=str(error), fix="write it again") from None
        self._starts: list[int] = [0, *accumulate(rows)]

    def __len__(self) -> int:
        return self._starts[-1]

    def where(self, index: int) -> str:
        """`file:row`, counted from 1."""
        return f"{self.path}:{index + 1}"

    def entry(self, index: int) -> Mapping[str, Any]:
        """One row, without the columns that hold nothing in it. Raises BadSample: it cannot be decoded."""
        import pyarrow

        group = bisect_right(self._starts, index) - 1
        try:
            row = self._group(group).slice(index - self._starts[group], 1).to_pylist()[0]
        except (pyarrow.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:  # no UTF-8, no date
            raise BadSample(
                "the row cannot be decoded", reason="json", who=self.where(index), why=str(error), fix="write it again"
            ) from None
        try:
            entry = {key: _decoded(value) if key in JSON_COLUMNS else value for key, value in row.items()}
            bounded(entry)
        except ValueError as error:
            raise BadSample("is not a sample", reason="json", who=self.where(index), why=str(error)) from None
        return {key: value for key, value in entry.items() if value is not None}

    def _group(self, number: int) -> Any:
        """A decoded row group; threads share those that were read last."""
        from pyarrow.parquet import ParquetFile

        key = (self.path, self._changed, number)
        with _lock:
            if key not in _groups:
                with ParquetFile(self.path) as file:
                    _groups[key] = file.read_row_group(number, use_threads=False)
                while len(_groups) > 1 and sum(t.nbytes for t in _groups.values()) > CACHE_BYTES:
                    _groups.popitem(last=False)
            _groups.move_to_end(key)
            return _groups[key]


def _decoded(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError:
        return value  # a text that begins with a bracket
