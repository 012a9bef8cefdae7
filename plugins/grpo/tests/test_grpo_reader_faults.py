"""Faults that a reader found: what a line says of thinking, and what the commands make of wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_grpo import curriculum, gym
from andes_grpo.curriculum import Measurement, measure
from andes_grpo.prompts import PromptMaker
from andes_training.data.bad import BadSample
from andes_training.data.samples import stage_samples
from andes_training.recipe import DataRecipe
from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.errors import InputError, TrainingError

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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threshold", "nan"), ("threshold", "inf"), ("threshold", "-inf"), ("samples", "0"), ("samples", "-1"),
        ("samples", "999999999999"),
        ("max-answer", "0"), ("max-answer", "-3"), ("concurrency", "0"), ("concurrency", "-1"), ("temperature", "nan"),
        ("temperature", "inf"), ("temperature", "-1"), ("temperature", "1e-5"), ("temperature", "1e9"),
    ],
)  # fmt: skip
def test_a_number_that_cannot_be_used_is_refused_before_the_model_is_read(
    tmp_path: Path, option: str, value: str
) -> None:
    lines_of(tmp_path, {})
    with pytest.raises(SystemExit) as caught:  # there is no model in this folder
        curriculum.main(
            [str(tmp_path), str(tmp_path / "data.jsonl"), str(tmp_path / "out.jsonl"), f"--{option}={value}"]
        )
    assert f"{option.replace('-', '_')} is " in str(caught.value)
    assert "do this: " in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pipeline.from_plugins(MODEL[:3]).save_pretrained(tmp_path_factory.mktemp("model") / "m")


def test_a_plugin_that_is_not_there_is_one_message(model: Path, tmp_path: Path) -> None:
    lines_of(tmp_path, {})
    with pytest.raises(SystemExit, match="nonexist"):
        curriculum.main([str(model), str(tmp_path / "data.jsonl"), str(tmp_path / "o.jsonl"), "--plugin", "nonexist"])


def test_settings_that_failed_before_the_first_rate_leave_no_trace(pipe: Pipeline, tmp_path: Path) -> None:
    lines_of(tmp_path, {}, {})
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    with pytest.raises(TrainingError, match="is too long"):
        measure(pipe, data, out, Measurement(samples=1, max_answer=10**6))
    assert len(measure(pipe, data, out, Measurement(samples=1, max_answer=2, temperature=0.0))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "out.jsonl"]


def test_a_stopped_measurement_with_rates_still_keeps_other_settings_out(pipe: Pipeline, tmp_path: Path) -> None:
    lines_of(tmp_path, {}, {})
    (tmp_path / ".out.jsonl.measured").write_text('"of other settings"\n0.5\n')
    with pytest.raises(TrainingError, match="lies here"):
        measure(pipe, tmp_path / "data.jsonl", tmp_path / "out.jsonl", Measurement(samples=1, max_answer=2))


def test_a_result_that_cannot_be_written_is_an_error_of_ours(pipe: Pipeline, tmp_path: Path) -> None:
    lines_of(tmp_path, {})
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        measure(pipe, tmp_path / "data.jsonl", tmp_path / "out.jsonl", Measurement(samples=1, max_answer=2))


@pytest.mark.parametrize("line", [{"a": 1}, {"messages": None}, {"prompt": [{"role": "user", "content": "2 + 2?"}]}])
def test_a_file_without_questions_leaves_nothing_out_in_silence(tmp_path: Path, line: dict[str, Any]) -> None:
    (tmp_path / "other.jsonl").write_text('{"messages": []}\n' + json.dumps(line) + "\n")
    with pytest.raises(SystemExit, match=r"other.jsonl:2: is no prompt"):
        gym.main(["chain_sum", str(tmp_path / "o.jsonl"), "--size", "2", "--without", str(tmp_path / "other.jsonl")])


@pytest.mark.parametrize("out", [".", "file/below.jsonl"])
def test_prompts_that_cannot_be_written_are_one_message(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="cannot be written"):
        gym.main(["chain_sum", str(tmp_path / out), "--size", "2"])


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_size_that_is_no_number_of_tasks_is_one_message(tmp_path: Path, size: str) -> None:
    with pytest.raises(SystemExit, match="do not fit"):
        gym.main(["chain_sum", str(tmp_path / "o.jsonl"), "--size", size])
