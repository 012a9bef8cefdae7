"""Damaged prompts and measurements: an error of ours, or the prompts that were written, in the right order."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_grpo.curriculum import Measurement, measure
from andes_grpo.gym import read_lines
from andes_grpo.prompts import PromptMaker
from andes_training.data.bad import BadSample
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError, TrainingError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "verifiers"]
LINES: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "two?"}], "answer": "2", "think": False},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "one?"}]}], "answer": ["1"], "system": "be"},
]
RAW = "".join(json.dumps(line) + "\n" for line in LINES).encode()
HOW = Measurement(samples=1, max_answer=1)


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline.from_plugins(TINY, seed=3)


@pytest.fixture(scope="module")
def maker(pipe: Pipeline) -> PromptMaker:
    return PromptMaker.of(pipe, max_answer=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def used(path: Path, maker: PromptMaker) -> list[bool]:
    """Whether each line of a file becomes a prompt; none where the file is refused."""
    try:
        samples, found = stage_samples([DataRecipe(path=path)], Path()), []
    except (AndesError, AssemblyError):
        return []
    for index in range(len(samples)):
        try:
            prompt = maker.prompt(samples[index], [1])
            assert len(prompt.inputs.ids) + 4 <= maker.room
            found.append(True)
        except BadSample:
            found.append(False)
    return found


@CASES
@given(number=st.integers(0, 1), data=st.data())
def test_fuzz_lines_of_prompts(folder, maker, number, data):
    lines = [*LINES]
    lines[number] = data.draw(altered(lines[number]))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = used(folder / "prompts.jsonl", maker)
    assert len(found) == 2
    assert found[1 - number]


@CASES
@given(content=damaged(RAW))
def test_fuzz_bytes_of_prompts(folder, maker, content):
    (folder / "bytes.jsonl").write_bytes(content)
    used(folder / "bytes.jsonl", maker)
    with contextlib.suppress(TrainingError):
        assert all(isinstance(line, dict) for line in read_lines(folder / "bytes.jsonl"))


def measured(pipe: Pipeline, folder: Path, content: bytes, before: bytes | None) -> list[Any] | None:
    """Lines in their order after measuring; None where a file was refused."""
    log = folder / ".ordered.jsonl.measured"
    log.unlink(missing_ok=True) if before is None else log.write_bytes(before)
    (folder / "data.jsonl").write_bytes(content)
    try:
        rates = measure(pipe, folder / "data.jsonl", folder / "ordered.jsonl", HOW)
    except (AndesError, AssemblyError):
        return None
    lines = [json.loads(line) for line in (folder / "ordered.jsonl").read_bytes().splitlines()]
    found = [line["pass_rate"] for line in lines]
    assert all(0 <= rate <= 1 for rate in found)
    assert found == sorted(rates, reverse=True)
    return lines


@CASES
@given(number=st.integers(0, 1), data=st.data())
def test_fuzz_lines_that_are_measured(pipe, folder, number, data):
    lines = [*LINES]
    lines[number] = data.draw(altered(lines[number]))
    measured(pipe, folder, "".join(json.dumps(line) + "\n" for line in lines).encode(), None)


@pytest.fixture(scope="module")
def known(pipe: Pipeline, folder: Path) -> bytes:
    """What a measurement leaves that is stopped before its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("andes_grpo.curriculum.write_lines", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(pipe, folder, RAW, None)
    return (folder / ".ordered.jsonl.measured").read_bytes()


@CASES
@given(data=st.data())
def test_fuzz_measurements_to_go_on_with(pipe, folder, known, data):
    rows = [json.loads(line) for line in known.splitlines()]
    before = data.draw(damaged(known)) if data.draw(st.booleans()) else None
    if before is None:
        before = "".join(json.dumps(row) + "\n" for row in _rows(data.draw(altered(rows)))).encode()
    found = measured(pipe, folder, RAW, before)
    assert found is None or len(found) == 2


def _rows(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
