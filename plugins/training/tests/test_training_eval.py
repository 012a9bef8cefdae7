"""Tasks scored while a stage learns: their figures, the state that is kept, and stages that end early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_training.best import Best
from andes_training.cli.train import train as train_command
from andes_training.evaluating import Evaluation, Learning
from andes_training.progress import Progress
from andes_training.recipe import load_recipe, open_pipeline
from andes_training.run import StageRun
from andes_training.state import states

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError, InputError, TrainingError
from andes_sdk.runtime.options import GenerationOptions

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Eight steps on two texts, and the same questions as a task."""
    talk = [
        {"messages": [{"role": "user", "content": f"{q}\nAnswer the question using a single word or phrase."},
                      {"role": "assistant", "content": a}]} for q, a in (("one?", "un"), ("two?", "deux"))
    ]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))
    rows = [{"index": i, "question": q, "answer": a} for i, (q, a) in enumerate((("one?", "un"), ("two?", "deux")))]
    (tmp_path / "docvqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.toml"
    path.write_text("""
name = "eval"
threads = 1
[pipeline]
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]
[[stages]]
stage = "sft"
steps = 30
rates = { language_model = 1e-2 }
schedule = "constant"
max_tokens = 128
checkpoint_every = 100
data = [{ path = "data.jsonl" }]
eval = [{ task = "docvqa", data = "docvqa.jsonl", max_tokens = 6 }]
eval_every = 10
""")
    return path


def train(recipe: Path, out: Path, *overrides: str) -> Path:
    loaded = load_recipe(recipe, overrides)
    return Path(open_pipeline(loaded).train(loaded, out, progress=Progress(out)))


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_that_learns_its_answers_scores_them_and_keeps_the_best_state(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = train(recipe, out, "keep_states=1")
    scores = {row["step"]: row["eval/docvqa"] for row in metrics(out) if "eval/docvqa" in row}
    assert list(scores) == [10, 20, 30]
    assert max(scores.values()) == 1.0  # two answers are learnt by heart
    best = json.loads((out / "best-00.json").read_text())
    first = next(step for step, score in scores.items() if score == 1.0)
    assert len(best.pop("data")) == 64
    assert best == {"step": first, "eval/docvqa": 1.0, "state": f"state-00-{first:08d}"}
    assert best["state"] in {state.name for state in states(out)}
    pipe = Pipeline.from_pretrained(model)
    assert pipe.evaluate("docvqa", data=recipe.parent / "docvqa.jsonl", max_tokens=6)["anls"] == scores[30]


def test_looking_changes_no_step(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "with", "stages.0.steps=4", "stages.0.eval_every=2")
    train(recipe, tmp_path / "without", "stages.0.steps=4", "stages.0.eval=[]", "stages.0.eval_every=0")
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("with", "without")]
    assert losses[0] == losses[1]


def test_a_stage_whose_figure_no_longer_rises_ends_with_its_best_state(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = train(recipe, out, "stages.0.eval_every=1", "stages.0.patience=3", "stages.0.rates={language_model = 1e-9}")
    rows = metrics(out)
    assert len(rows) == 4  # the first look is the best, and three more are not better
    assert json.loads((out / "best-00.json").read_text())["step"] == 1
    from safetensors.torch import load_file

    kept = load_file(next((out / "state-00-00000001").glob("*.safetensors")))
    trained = load_file(model / "model.safetensors")
    name = next(key for key in trained if key.endswith("layers.0.self_attn.q_proj.weight"))
    same = [tensor for key, tensor in kept.items() if key.endswith(name)]
    assert any(tensor.equal(trained[name]) for tensor in same if tensor.dtype == trained[name].dtype)


def test_the_best_of_other_questions_is_looked_for_anew(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    train(recipe, out, "stages.0.steps=10", "stages.0.eval_every=5")
    before = json.loads((out / "best-00.json").read_text())
    (recipe.parent / "docvqa.jsonl").write_text('{"index": 0, "question": "three?", "answer": "trois"}\n')
    train_command(recipe, out, ["stages.0.steps=20", "stages.0.eval_every=5"])
    told = "eval/docvqa of sft: another figure or other data than before, its best starts anew"
    assert told in capsys.readouterr().out
    after = json.loads((out / "best-00.json").read_text())
    assert after["data"] != before["data"]
    assert after["step"] >= 10


def test_a_run_that_was_killed_while_it_scored_scores_first(recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
    out = tmp_path / "out"
    given = ("stages.0.steps=4", "stages.0.eval_every=2", "stages.0.checkpoint_every=2")
    train(recipe, tmp_path / "whole", *given)
    figures = Evaluation.figures

    def killed(self: Evaluation, limit: int = 0) -> dict[str, float]:
        if not limit:
            raise KeyboardInterrupt
        return figures(self, limit)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluation, "figures", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, out, *given)
    assert [state.name for state in states(out)] == ["state-00-00000002"]
    train(recipe, out, *given)
    same = ("step", "loss", "eval/docvqa")
    rows = [[{key: row.get(key) for key in same} for row in metrics(tmp_path / name)] for name in ("whole", "out")]
    assert rows[0] == rows[1]


def test_answers_are_those_of_the_weights_of_the_moment() -> None:
    pipe = Pipeline.from_plugins(PLUGINS)
    before = pipe.generate("hello", GenerationOptions(max_tokens=4, temperature=1.0)).tokens
    import torch

    with torch.no_grad():
        pipe.model.language_model.get_parameter("model.norm.weight").mul_(-3.0)
    learning = Learning(pipe)
    answer = learning.generate("hello", GenerationOptions(max_tokens=4, temperature=1.0))
    assert answer.tokens != before
    assert learning.plan is pipe.plan


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.best='loss'", "best is 'loss'"),
        ("stages.0.eval=[]", "eval_every needs tasks"),
        ("stages.0.eval=[{task = '../x'}]", "write letters"),
        ("stages.0.eval=[{task = 'docvqa'}, {task = 'docvqa'}]", "names a task twice"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_recipe(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        load_recipe(recipe, [override])
    assert any(message in str(problem) for problem in caught.value.problems)


def test_what_cannot_be_scored_is_told_before_the_first_step(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the data cannot be read"):
        train(recipe, tmp_path / "out", "stages.0.eval=[{task = 'docvqa', data = 'gone'}]")
    with pytest.raises(ConfigError, match="'docvqaa'"):
        train(recipe, tmp_path / "out", "stages.0.eval=[{task = 'docvqaa', data = 'docvqa.jsonl'}]")
    (recipe.parent / "docvqa.jsonl").write_text('{"question": "one?"}\n')
    with pytest.raises(InputError, match="lacks 'answers' or 'answer'"):
        train(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_patience_counts_looks_since_the_best_one(recipe: Path, tmp_path: Path) -> None:
    stage = load_recipe(recipe, ["stages.0.eval_every=5", "stages.0.patience=2"]).stages[0]
    anything: Any = None
    best = Best(StageRun(pipeline=anything, recipe=stage, stage=anything, samples=[], out=tmp_path), stage.watched, "")
    best.note(5, {"loss": 1.0})
    assert not best.over(100)  # nothing was ever looked at
    best.note(10, {"eval/docvqa": 0.5})
    best.note(15, {"eval/docvqa": 0.5})
    assert (best.step, best.value, best.better) == (10, 0.5, True)
    assert [best.over(step) for step in (10, 15, 19, 20)] == [False, False, False, True]
