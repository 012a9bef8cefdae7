"""Faults that a reader found: what a line says of thinking, and what the commands make of wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_grpo.prompts import PromptMaker
from andes_training.data.bad import BadSample
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from attrs import evolve

from andes_sdk import Pipeline

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "verifiers"]
THOUGHT, PLAIN = "<think>so</think>4", "4"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_plugins(MODEL)


def lines_of(folder: Path, *more: dict[str, Any], name: str = "data.jsonl") -> Any:
    lines = [{"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4", **m} for m in more]
    (folder / name).write_text("".join(json.dumps(x) + "\n" for x in lines))
    return stage_samples([DataRecipe(path=Path(name))], folder)


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("line", [{}, {"think": None}, {"think": True}, {"think": False}])
def test_the_prompt_and_the_reward_format_agree_on_thinking(
    pipe: Pipeline, tmp_path: Path, line: dict[str, Any], default: bool
) -> None:
    maker = evolve(PromptMaker.of(pipe, 4), thinking=default)
    prompt = maker.prompt(lines_of(tmp_path, line)[0], (1,))
    thinks = default if line.get("think") is None else line["think"]
    assert (prompt.inputs.prefix != "") is thinks
    said = {THOUGHT: float(thinks), PLAIN: float(not thinks)}
    assert {text: pipe.pick("rewards", "format").score(prompt.entry, text) for text in said} == said


@pytest.mark.parametrize("think", ["false", "no", "true", "", 0, 1, 0.0, [], {}, [False]])
def test_think_that_is_no_truth_value_is_a_bad_sample(pipe: Pipeline, tmp_path: Path, think: object) -> None:
    samples = lines_of(tmp_path, {}, {"think": think})
    with pytest.raises(BadSample, match="`think` is") as caught:
        PromptMaker.of(pipe, 4).prompt(samples[1], (1,))
    assert caught.value.reason == "think"
    assert caught.value.who.endswith("data.jsonl:2")
    assert "true or false" in caught.value.fix


def test_a_line_that_asks_to_think_is_refused_where_the_model_has_no_such_mode(pipe: Pipeline, tmp_path: Path) -> None:
    class Plain:
        def __getattr__(self, name: str) -> Any:
            return getattr(pipe.tokenizer, name)

        def render(self, turns: Any, *, think: bool, generate: bool) -> Any:
            return pipe.tokenizer.render(turns, think=False, generate=generate)

    maker = PromptMaker.of(pipe, 4)
    maker = evolve(maker, processor=evolve(maker.processor, tokenizer=Plain()))
    samples = lines_of(tmp_path, {"think": True}, {"think": False})
    with pytest.raises(BadSample, match="asks to think"):
        maker.prompt(samples[0], (1,))
    assert maker.prompt(samples[1], (1,)).inputs.prefix == ""
