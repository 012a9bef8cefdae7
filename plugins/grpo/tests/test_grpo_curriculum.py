"""Data from reasoning-gym, and pass rates that order it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from andes_grpo import curriculum, gym
from andes_grpo.curriculum import Measurement, measure, ordered
from andes_verifiers.gym import ReasoningGym
from attrs import frozen

from andes_sdk import Pipeline
from andes_sdk.errors import InputError, TrainingError
from andes_sdk.hookspecs import hookimpl

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@frozen
class Chance:
    """Right if the answer's length, in characters, is a multiple of the sample's `step`; 0 is never right."""

    name: str = "chance"

    def score(self, sample, answer):
        return float(sample["step"] > 0 and len(answer) % sample["step"] == 0)


@frozen(eq=False, kw_only=True)
class Rewards:
    contract = "1.1"

    @hookimpl
    def andes_rewards(self):
        return [Chance()]


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_plugins([*MODEL, Rewards()])


def prompts(folder, count=20):
    lines = [{"messages": [{"role": "user", "content": f"n {i}"}], "step": (1, 0, 2)[i % 3]} for i in range(count)]
    gym.write_lines(folder / "data.jsonl", lines)
    return folder / "data.jsonl"


def test_tasks_hold_what_their_verifier_needs(tmp_path):
    lines = list(gym.entries("chain_sum", size=5, seed=3, options={"max_terms": 2, "max_digits": 1}, think=False))
    assert lines == list(
        gym.entries("chain_sum", size=5, seed=3, options={"max_terms": 2, "max_digits": 1}, think=False)
    )
    assert lines != list(
        gym.entries("chain_sum", size=5, seed=4, options={"max_terms": 2, "max_digits": 1}, think=False)
    )
    for line in lines:
        expression = line["messages"][0]["content"].split(": ")[1].removesuffix(" =")
        assert eval(expression) == int(line["answer"])
        assert line["think"] is False
        assert ReasoningGym().score(line, line["answer"]) == 1.0
        assert ReasoningGym().score(line, str(int(line["answer"]) + 1)) < 1.0
    with pytest.raises(InputError, match="did you mean 'chain_sum'"):
        list(gym.entries("chain_sums", size=1))
    with pytest.raises(InputError, match="do not fit"):
        list(gym.entries("chain_sum", size=1, options={"max_term": 2}))


def test_the_command_leaves_out_questions_of_another_file(tmp_path, capsys):
    options = ["--option", "max_terms=2", "--option", "max_digits=1"]
    gym.main(["chain_sum", str(tmp_path / "test.jsonl"), "--size", "40", "--seed", "1", *options])
    gym.main(
        [
            "chain_sum",
            str(tmp_path / "train.jsonl"),
            "--size",
            "40",
            "--without",
            str(tmp_path / "test.jsonl"),
            *options,
        ]
    )
    questions = [{gym.question_of(x) for x in gym.read_lines(tmp_path / f"{n}.jsonl")} for n in ("test", "train")]
    assert questions[0]
    assert questions[1]
    assert not questions[0] & questions[1]
    assert "prompts in" in capsys.readouterr().out


def test_rates_are_shares_of_right_answers_and_order_the_file(pipe, tmp_path):
    data, out = prompts(tmp_path), tmp_path / "ordered.jsonl"
    how = Measurement(reward="chance", samples=4, max_answer=3)
    rates = measure(pipe, data, out, how)
    assert [r for i, r in enumerate(rates) if i % 3 == 0] == [1.0] * 7
    assert [r for i, r in enumerate(rates) if i % 3 == 1] == [0.0] * 7
    assert set(rates[2::3]) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert 0 < sum(rates[2::3]) < 6
    written = [x["pass_rate"] for x in gym.read_lines(out)]
    assert written == sorted(rates, reverse=True)
    assert not list(tmp_path.glob(".*"))
    assert measure(pipe, data, out, how, drop=True) == rates
    assert [x["pass_rate"] for x in gym.read_lines(out)] == [r for r in sorted(rates, reverse=True) if 0 < r < 1]


def test_equal_rates_keep_the_order_of_the_file():
    lines = [{"n": n, "pass_rate": r} for n, r in enumerate((0.5, 1.0, 0.5, 0.0))]
    assert [x["n"] for x in ordered(lines)] == [1, 0, 2, 3]
    assert [x["n"] for x in ordered(lines, drop=True)] == [0, 2]


def test_a_stopped_measurement_goes_on_and_gives_the_same(pipe, tmp_path):
    data, out, log = prompts(tmp_path, 40), tmp_path / "ordered.jsonl", tmp_path / ".ordered.jsonl.measured"
    how = Measurement(reward="chance", samples=4, max_answer=3)
    whole = measure(pipe, data, tmp_path / "other.jsonl", how)
    head = curriculum._digest(data, pipe, how)
    log.write_text("\n".join([json.dumps(head), *map(str, whole[:17]), "0."]))  # killed while it wrote the 18th
    assert measure(pipe, data, out, how) == whole
    assert out.read_text() == (tmp_path / "other.jsonl").read_text()
    assert not log.exists()
    log.write_text(f"{json.dumps(head)}\n0.5\n")
    with pytest.raises(TrainingError, match="other data, weights or settings"):
        measure(pipe, data, out, Measurement(reward="chance", samples=2, max_answer=3))


def test_the_command_measures_a_checkpoint(tmp_path, capsys):
    model = Pipeline.from_plugins(MODEL).save_pretrained(tmp_path / "model")
    gym.write_lines(tmp_path / "d.jsonl", list(gym.entries("chain_sum", size=3, options={"max_digits": 1})))
    command = [str(model), str(tmp_path / "d.jsonl"), str(tmp_path / "o.jsonl")]
    curriculum.main([*command, "--reward", "reasoning_gym", "--samples", "2", "--max-answer", "2"])
    assert json.loads(capsys.readouterr().out)["prompts"] == 3
    assert all(x["pass_rate"] == 0.0 for x in gym.read_lines(Path(tmp_path / "o.jsonl")))
    with pytest.raises(SystemExit, match="did you mean 'exact'"):
        curriculum.main([*command, "--reward", "exacts"])


def test_rates_of_other_weights_in_the_same_folder_are_not_taken_over(tmp_path):
    data, how = prompts(tmp_path, 1), Measurement(reward="chance")
    one, other = (Pipeline.from_plugins(MODEL, seed=seed) for seed in (0, 1))
    model = one.save_pretrained(tmp_path / "model")
    before = curriculum._digest(data, Pipeline.from_pretrained(model), how)
    assert curriculum._digest(data, Pipeline.from_pretrained(one.save_pretrained(tmp_path / "copy")), how) == before
    other.save_pretrained(model)
    assert curriculum._digest(data, Pipeline.from_pretrained(model, seed=0), how) != before
