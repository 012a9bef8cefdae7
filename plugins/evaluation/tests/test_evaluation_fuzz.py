"""Damaged batch files: an error of ours, or an answer to each line that is one, the same as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_evaluation.batch import BatchJob
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.reading import parse_json
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

LINES: list[Any] = [
    [{"role": "user", "content": "one"}],
    "two\u2028 \u00e9",
    [{"role": "user", "content": [{"type": "text", "text": "three"}]}],
]
RAW = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def right(pipe: Pipeline, folder: Path) -> bytes:
    return run(pipe, folder, RAW, None) or b""


def run(pipe: Pipeline, folder: Path, lines: bytes, before: bytes | None) -> bytes | None:
    """What a batch over these lines leaves, where it goes on with `before`; None where it refused a file."""
    (folder / "in.jsonl").write_bytes(lines)
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True) if before is None else out.write_bytes(before)
    try:
        counts = BatchJob(pipe, GenerationOptions(max_tokens=1), folder / "in.jsonl", out).run()
    except (AndesError, AssemblyError):
        return None
    assert counts["lines"] == counts["skipped"] + counts["answered"] + counts["failed"]
    return out.read_bytes() if out.exists() else b""


def rows_of(content: bytes) -> dict[int, Any]:
    rows = [json.loads(line) for line in content.split(b"\n")[:-1]]
    found = {row["line"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def texts_of(rows: dict[int, Any]) -> dict[int, Any]:
    return {n: [row["request"], row["text"]] for n, row in rows.items() if "errors" not in row}


def check(found: bytes | None, lines: bytes, right: bytes) -> None:
    """Each line has its row; lines that are as they were have the answers that they had."""
    if found is None:
        return
    rows, whole = rows_of(found), texts_of(rows_of(right))
    given_lines = lines.split(b"\n")
    assert set(rows) == {n for n, line in enumerate(given_lines, 1) if line.strip(b" \t\r\n\v\f")}
    for number, line in enumerate(RAW.split(b"\n")[:-1], 1):
        if given_lines[number - 1 : number] == [line]:
            assert texts_of(rows)[number] == whole[number]


@CASES
@given(lines=damaged(RAW))
def test_fuzz_bytes_of_batches(pipe, folder, right, lines):
    check(run(pipe, folder, lines, None), lines, right)


@CASES
@given(number=st.integers(0, 2), data=st.data())
def test_fuzz_lines_of_batches(pipe, folder, right, number, data):
    content = [*LINES]
    content[number] = data.draw(altered(content[number]))
    lines = "".join(json.dumps(line) + "\n" for line in content).encode()
    found = run(pipe, folder, lines, None)
    assert found is not None or not _read(lines)
    check(found, lines, right)


def _read(lines: bytes) -> bool:
    try:
        return bool([parse_json(line) for line in lines.splitlines()])
    except ValueError:
        return False


@CASES
@given(data=st.data())
def test_fuzz_bytes_of_answers_to_go_on_with(pipe, folder, right, data):
    before = data.draw(damaged(right))
    found = run(pipe, folder, RAW, before)
    if found is None:
        assert (folder / "out.jsonl").read_bytes() == before
        return
    rows = rows_of(found)
    assert set(rows) == {1, 2, 3}
    assert {n: row["request"] for n, row in rows.items()} == {n: row["request"] for n, row in rows_of(right).items()}


@CASES
@given(data=st.data())
def test_fuzz_rows_of_answers_to_go_on_with(pipe, folder, right, data):
    rows = [json.loads(line) for line in right.split(b"\n")[:-1]]
    number = data.draw(st.integers(0, 2))
    rows[number] = data.draw(altered(rows[number]))
    before = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = run(pipe, folder, RAW, before)
    if found is None:
        assert (folder / "out.jsonl").read_bytes() == before
    else:
        assert set(rows_of(found)) == {1, 2, 3}
