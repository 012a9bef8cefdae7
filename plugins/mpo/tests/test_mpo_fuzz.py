"""Damaged pairs, prompts, progress and reference files: an error of ours, or the pairs that were to be made."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_mpo.pairs import PairBuilder, PairOptions
from andes_mpo.reference import _File, _read, _write
from andes_training.data.bad import BadSample
from andes_training.data.rows import RowMaker
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError, TrainingError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "mpo"]
OPTIONS = PairOptions(reward="", k=1, max_tokens=2, blind=False)


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline.from_plugins(TINY, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


# ---------------------------------------------------------------- pairs to learn from

USER = {"role": "user", "content": "two?"}
PAIRS: list[dict[str, Any]] = [
    {"prompt": [USER], "chosen": "2", "rejected": "3", "system": "be", "id": 1, "meta": {"made": "verified"}},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": "one?"}]}], "chosen": "1", "rejected": "2"},
]


@pytest.fixture(scope="module")
def maker(pipe: Pipeline) -> RowMaker:
    return RowMaker(pipe.processor, pipe.pick("training_stages", "mpo").conversations, max_tokens=4096)


def used(path: Path, maker: RowMaker) -> list[bool]:
    """Whether each line of a file makes a row; none where the file is refused."""
    try:
        samples, found = stage_samples([DataRecipe(path=path)], Path()), []
    except (AndesError, AssemblyError):
        return []
    for index in range(len(samples)):
        try:
            row = maker.row(samples[index], random.Random(0))
            assert bool((row.labels != -100).any())
            found.append(True)
        except BadSample:
            found.append(False)
    return found


@CASES
@given(number=st.integers(0, 1), data=st.data())
def test_fuzz_lines_of_pairs(folder, maker, number, data):
    pairs = [*PAIRS]
    pairs[number] = data.draw(altered(pairs[number]))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    found = used(folder / "pairs.jsonl", maker)
    assert len(found) == 2
    assert found[1 - number]


@CASES
@given(content=damaged("".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()))
def test_fuzz_bytes_of_pairs(folder, maker, content):
    (folder / "bytes.jsonl").write_bytes(content)
    used(folder / "bytes.jsonl", maker)


# ---------------------------------------------------------------- pairs that are made

PROMPTS: list[dict[str, Any]] = [
    {"prompt": [USER], "answer": "2", "id": 5},
    {"messages": [USER, {"role": "assistant", "content": "two"}]},
]


def made(pipe: Pipeline, folder: Path, prompts: bytes, progress: bytes | None = None) -> bytes | None:
    """The pairs, or None where prompts or progress are refused."""
    (folder / "prompts.jsonl").write_bytes(prompts)
    own = folder / "out.jsonl.progress"
    own.unlink(missing_ok=True) if progress is None else own.write_bytes(progress)
    try:
        counts = PairBuilder(pipe, folder / "prompts.jsonl", folder / "out.jsonl", OPTIONS).run()
    except (AndesError, AssemblyError):
        return None
    found = (folder / "out.jsonl").read_bytes()
    assert counts["pairs"] == len(found.splitlines())
    return found


@CASES
@given(number=st.integers(0, 1), data=st.data())
def test_fuzz_lines_of_prompts(pipe, folder, number, data):
    prompts = [*PROMPTS]
    prompts[number] = data.draw(altered(prompts[number]))
    made(pipe, folder, "".join(json.dumps(one) + "\n" for one in prompts).encode())


DONE = [
    {
        "prompt": 0,
        "reason": "verified",
        "pairs": [{**PAIRS[0], "meta": {"made": "verified", "reward": "", "prompt": 0}}],
    },
    {"prompt": 1, "reason": "all wrong", "pairs": []},
]
RAW = "".join(json.dumps(one) + "\n" for one in PROMPTS).encode()


@pytest.fixture(scope="module")
def head(pipe: Pipeline, folder: Path) -> bytes:
    made(pipe, folder, RAW)
    return (folder / "out.jsonl.progress").read_bytes().split(b"\n")[0] + b"\n"


@CASES
@given(number=st.integers(0, 1), data=st.data())
def test_fuzz_rows_of_progress(pipe, folder, head, number, data):
    """What a stopped run left is taken as it is, or refused."""
    done: list[Any] = [*DONE]
    done[number] = data.draw(altered(done[number]))
    progress = head + "".join(json.dumps(one) + "\n" for one in done).encode()
    found = made(pipe, folder, RAW, progress)
    if found is not None:
        made_before = [pair for one in done for pair in one["pairs"]]
        assert repr([json.loads(line) for line in found.split(b"\n")[:-1]]) == repr(made_before)


@CASES
@given(data=st.data())
def test_fuzz_bytes_of_progress(pipe, folder, head, data):
    progress = head + "".join(json.dumps(one) + "\n" for one in DONE).encode()
    found = made(pipe, folder, RAW, data.draw(damaged(progress)))
    if found is not None:
        assert all(isinstance(json.loads(line), dict) for line in found.splitlines())
        rows = [json.loads(row) for row in (folder / "out.jsonl.progress").read_bytes().split(b"\n")[:-1]]
        assert [row["prompt"] for row in rows[1:]] == [0, 1]


# ---------------------------------------------------------------- the reference

KNOWN = {bytes([n] * 32): (-1.5 * n, -0.25 * n) for n in range(3)}


@CASES
@given(data=st.data())
def test_fuzz_reference_files(folder, data):
    """Log-probabilities are those that were written, or the file is refused."""
    path = folder / "reference.safetensors"
    _write(path, _File("a" * 64, KNOWN))
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    if data.draw(st.booleans()):
        content = data.draw(damaged(raw))
    else:
        body = json.dumps(data.draw(altered(json.loads(raw[8:end])))).encode()
        content = len(body).to_bytes(8, "little") + body + raw[end:]
    path.unlink()
    path.write_bytes(content)
    try:
        found = _read(path)
    except TrainingError:
        return
    assert (found.model, found.known) == ("a" * 64, KNOWN)
