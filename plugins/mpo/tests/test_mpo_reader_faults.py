"""Faults that a reader of the documentation found by following it; each test's name says the fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_mpo.pairs import PairBuilder, PairOptions
from andes_training.recipe import load_recipe
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, TrainingError
from andes_sdk.runtime.generation import Answer


def pair(number: int, **more: Any) -> str:
    question = {"role": "user", "content": f"what is {number}?"}
    return json.dumps({"prompt": [question], "chosen": f"it is {number}", "rejected": "no idea", **more}) + "\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text("""
name = "m"
threads = 1
[pipeline]
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, { mpo = { rate = 1e-3 } }]
[[stages]]
stage = "mpo"
steps = 3
max_tokens = 64
data = [{ path = "pairs.jsonl" }]
""")
    return path


def train(recipe: Path, out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    loaded = load_recipe(recipe, overrides)
    return load_file(Pipeline.from_plugins(**loaded.pipeline).train(loaded, out) / "model.safetensors")


def test_a_run_could_not_go_on_after_its_bad_line_was_corrected(recipe: Path, tmp_path: Path) -> None:
    data, whole = tmp_path / "pairs.jsonl", [pair(i) for i in (1, 2, 2, 3, 4)]
    data.write_text("".join([*whole[:3], pair(3, chosen=""), whole[4]]))
    with pytest.raises(TrainingError, match=r"pairs\.jsonl:4"):
        train(recipe, tmp_path / "out")
    data.write_text("".join(whole))
    mended, expected = train(recipe, tmp_path / "out"), train(recipe, tmp_path / "new")
    assert all(torch.allclose(mended[name], expected[name], atol=1e-5) for name in expected)
    known = [load_file(tmp_path / out / "reference-00-000.safetensors")["keys"] for out in ("out", "new")]
    assert sorted(known[0].tolist()) == sorted(known[1].tolist())


def test_references_were_missing_after_another_limit_before_the_first_step(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(pair(1) + pair(2, chosen="it is two " * 20))
    with pytest.raises(TrainingError, match="is too long"):
        train(recipe, tmp_path / "out")
    train(recipe, tmp_path / "out", "stages.0.max_tokens=400")


def test_pairs_found_out_after_all_work_that_they_have_no_reward_or_no_place(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": "1?"}], "answer": "1"}))
    pipeline = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "verifiers"])

    def nothing(*_: Any) -> Any:
        raise AssertionError("answers are made")

    pipeline.generate_batch = nothing  # type: ignore[method-assign]
    for out, reward, message in (
        ("pairs.jsonl", "banana", "brings 'banana' to rewards"),
        (".", "exact", "is a folder"),
        ("prompts.jsonl/pairs.jsonl", "exact", "cannot be written"),
    ):
        builder = PairBuilder(pipeline, tmp_path / "prompts.jsonl", tmp_path / out, PairOptions(reward=reward))
        with pytest.raises(AndesError, match=message):
            builder.run()


@pytest.mark.parametrize(("option", "asked"), [(None, [False, False, True]), (False, [False] * 3), (True, [True] * 3)])
def test_rewards_of_pairs_saw_null_where_the_model_had_been_told_whether_to_think(
    tmp_path: Path, option: bool | None, asked: list[bool]
) -> None:
    question = {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    entries = [{**question, "think": None}, {**question, "think": False}, {**question, "think": True}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in entries))
    pipeline = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "verifiers"])
    told: list[bool | None] = []

    def answer(think: bool) -> Answer:
        text = "<think>so</think>4" if think else "4"
        return Answer(text=text, tokens=(1, 2), finish="stop", prompt_tokens=3, seconds={}, kv_bytes=0)

    def answers(conversations: Any, options: Any) -> list[Answer]:
        told.extend(one.think for one in options)
        return [answer(bool(one.think)) for one in options]

    pipeline.generate_batch = answers  # type: ignore[method-assign]
    options = PairOptions(reward="format", k=1, think=option)
    counts = PairBuilder(pipeline, tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl", options).run()
    # the reward `format` calls an answer right that reasons if, and only if, it was asked to
    assert (told, counts["all right"]) == (asked, 3)


def test_a_prompt_of_pairs_that_says_nonsense_of_thinking_was_answered(tmp_path: Path) -> None:
    line = {"prompt": [{"role": "user", "content": "2 + 2?"}], "think": "yes"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line))
    pipeline = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "verifiers"])
    with pytest.raises(TrainingError, match=r"(?s)prompts\.jsonl:1.*`think` is 'yes'"):
        PairBuilder(pipeline, tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl").run()
