"""Damaged answers of `andes eval`: an error of ours and the file as it was, or the same figures as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from andes_evaluation.run import Settings
from andes_evaluation.suite import Suite
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

QUESTIONS = [{"index": i, "question": q, "answer": "yes"} for i, q in enumerate(("one?", "two?", "three?"))]


@pytest.fixture(scope="module", autouse=True)
def listed_once() -> Iterator[None]:
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "docvqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return folder


def score(pipe: Pipeline, folder: Path) -> dict[str, Any]:
    suite = Suite.of(["docvqa"], folder, Settings(given={"max_tokens": 1}))
    (outcome,) = suite.run(pipe, model="m", out=folder / "out")
    assert len({row["key"] for row in outcome.rows}) == len(outcome.rows) == 3
    return {name: figure.to_dict() for name, figure in outcome.figures.items()}


@pytest.fixture(scope="module")
def right(pipe: Pipeline, folder: Path) -> tuple[bytes, dict[str, Any]]:
    figures = score(pipe, folder)
    return (folder / "out" / "docvqa.jsonl").read_bytes(), figures


def check(pipe: Pipeline, folder: Path, before: bytes, keys: set[str]) -> dict[str, Any] | None:
    file = folder / "out" / "docvqa.jsonl"
    file.write_bytes(before)
    try:
        found = score(pipe, folder)
    except (AndesError, AssemblyError):
        assert file.read_bytes() == before
        return None
    rows = [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    assert keys <= {row["key"] for row in rows}
    assert len({row["key"] for row in rows}) == len(rows)
    return found


@CASES
@given(data=st.data())
def test_fuzz_bytes_of_answers(
    pipe: Pipeline, folder: Path, right: tuple[bytes, dict[str, Any]], data: st.DataObject
) -> None:
    check(pipe, folder, data.draw(damaged(right[0])), {"0", "1", "2"})


@CASES
@given(number=st.integers(0, 2), data=st.data())
def test_fuzz_rows_of_answers(
    pipe: Pipeline, folder: Path, right: tuple[bytes, dict[str, Any]], number: int, data: st.DataObject
) -> None:
    rows = [json.loads(line) for line in right[0].split(b"\n")[:-1]]
    rows[number] = data.draw(altered(rows[number]))
    before = "".join(json.dumps(row) + "\n" for row in rows).encode()
    check(pipe, folder, before, {"0", "1", "2"})


def test_a_row_that_stands_twice_counts_once(pipe: Pipeline, folder: Path, right: tuple[bytes, dict[str, Any]]) -> None:
    lines = right[0].splitlines(keepends=True)
    assert check(pipe, folder, right[0] + lines[1], {"0", "1", "2"}) == right[1]
    assert (folder / "out" / "docvqa.jsonl").read_bytes() == right[0]


def test_a_row_of_another_task_or_without_a_score_is_refused(
    pipe: Pipeline, folder: Path, right: tuple[bytes, dict[str, Any]]
) -> None:
    rows = [json.loads(line) for line in right[0].split(b"\n")[:-1]]
    for change in ({"task": "pope"}, {"score": 2.0}, {"marks": None}, {"said": 5}):
        before = "".join(json.dumps({**row, **change}) + "\n" for row in rows).encode()
        assert check(pipe, folder, before, set()) is None
