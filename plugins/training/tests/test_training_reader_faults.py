"""Faults that a reader of the documentation found by following it; each test's name says the fault."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from andes_training.cli.train import train as train_command
from andes_training.data.bad import BadSample
from andes_training.data.inspection import problems
from andes_training.data.samples import stage_samples
from andes_training.data.shards import find_files, open_shard
from andes_training.progress import Progress
from andes_training.recipe import DataRecipe, Recipe, StageRecipe, load_recipe
from andes_training.report import write_report
from andes_training.state import states
from andes_training.stopping import Stopping
from PIL import Image
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import AssemblyError, InputError, TrainingError


def talk(question: str, answer: str, picture: str = "") -> dict[str, Any]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": picture}}] if picture else []
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return {"messages": [user, {"role": "assistant", "content": answer}]}


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(e if isinstance(e, str) else json.dumps(e) + "\n" for e in entries))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Four steps on four samples, two of them with a picture."""
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    lines(tmp_path / "data.jsonl", *(talk(f"what is {i}?", f"it is {i}", "red.png" * (i % 2)) for i in range(4)))
    path = tmp_path / "r.toml"
    path.write_text("""
name = "t"
threads = 1
[pipeline]
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, { sft = { rate = 1e-3 } }]
[[stages]]
stage = "sft"
steps = 4
log_every = 1
max_tokens = 128
data = [{ path = "data.jsonl" }]
""")
    return path


def train(recipe: Path, out: Path, *overrides: str, **options: Any) -> Pipeline:
    loaded = load_recipe(recipe, overrides)
    pipeline = Pipeline.from_plugins(**loaded.pipeline)
    pipeline.train(loaded, out, progress=Progress(out), **options)
    return pipeline


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


# ---------------------------------------------------------------- adapters


def test_an_adapter_was_refused_on_the_model_that_was_saved_with_it_where_the_projector_learnt_beside_it(
    recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "out"
    before = Pipeline.from_plugins(**load_recipe(recipe).pipeline).model.state_dict()
    given = ["stages.0.rates={mlp = 1e-2}", "stages.0.lora={rank = 2, alpha = 4}"]
    train_command(recipe, out, given)
    opened = Pipeline.from_pretrained(out / "model")
    opened.add_adapter("own", out / "adapters" / "sft")
    changed = {n.partition(".")[0] for n, p in opened.model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {"mlp"}
    told = capsys.readouterr().out
    assert "as it was" not in told
    assert f"the last adapter's base, with what was trained beside it: {out / 'model'}" in told


def test_an_adapter_was_refused_after_an_earlier_stage_of_its_run(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("peft")
    out, text = tmp_path / "out", recipe.read_text()
    recipe.write_text(f"{text}\n{text[text.index('[[stages]]') :]}[stages.lora]\nrank = 2\n")
    train_command(recipe, out)
    Pipeline.from_pretrained(out / "model").add_adapter("own", out / "adapters" / "sft")
    assert f"the last adapter's base: {out / 'model'}" in capsys.readouterr().out


# ---------------------------------------------------------------- validation


def figures(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_validation_that_failed_took_the_steps_before_it_with_it(recipe: Path, tmp_path: Path) -> None:
    good = [talk(f"what is {i}?", "it is so, and this is a rather long answer " * 2) for i in range(20, 24)]
    lines(tmp_path / "val.jsonl", *good, talk("x", "y", "gone.png"))
    given = ['stages.0.validation=[{path = "val.jsonl"}]', "stages.0.checkpoint_every=3", "stages.0.max_tokens=64"]
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=r"gone\.png"):
        train(recipe, out, *given)
    assert [s.name for s in states(out)] == ["state-00-00000003"]
    lines(tmp_path / "val.jsonl", *good)
    train(recipe, out, *given)
    train(recipe, tmp_path / "whole", *given)
    assert figures(out) == figures(tmp_path / "whole")
    assert [step for step, row in enumerate(figures(out), 1) if "validation_loss" in row] == [3, 4]
    best = [json.loads((folder / "best-00.json").read_text()) for folder in (out, tmp_path / "whole")]
    assert best[0] == best[1]


def test_options_of_validation_data_were_ignored(recipe: Path, tmp_path: Path) -> None:
    good = [talk(f"what is {i}?", f"it is {i}") for i in range(20, 24)]
    lines(tmp_path / "val.jsonl", *good, talk("x", "y", "gone.png"), "{\n", *good)
    told: list[Any] = []

    class Shown:
        def show(self, event: Any) -> None:
            told.append(event)

    def trained(out: str, options: str) -> Path:
        given = [f'stages.0.validation=[{{path = "val.jsonl"{options}}}]', "stages.0.checkpoint_every=2"]
        loaded = load_recipe(recipe, given)
        Pipeline.from_plugins(**loaded.pipeline).train(loaded, tmp_path / out, progress=Shown())
        return tmp_path / out

    out = trained("skip", ', on_error = "skip"')
    (bad,) = [e.values for e in told if e.kind == "bad-samples"]
    assert (bad["skipped"], bad["reasons"], bad["validation"]) == (2, {"picture": 1, "json": 1}, True)
    rows = [json.loads(line) for line in (out / "bad_samples.jsonl").read_text().splitlines()]
    assert [(r["where"].rpartition("/")[2], r["validation"]) for r in rows] == [
        ("val.jsonl:5", True),
        ("val.jsonl:6", True),
    ]
    with pytest.raises(TrainingError, match="max_errors is 1"):
        trained("most", ', on_error = "skip", max_errors = 1')
    lines(tmp_path / "val.jsonl", *good)
    losses = []
    for name, options in (("all", ""), ("two", ", samples = 2"), ("more", ", samples = 9")):
        told.clear()
        trained(name, options)
        losses.append({e.step: e.values.get("validation_loss") for e in told if e.kind == "step"})
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.parametrize(
    "option",
    ["flip = true", "shift = 0.1", "rotate = 5.0", "questions = 1", "repeat = 2", "weight = 1.0", "tokens = 9"],
)
def test_options_that_validation_cannot_honour_were_taken(recipe: Path, option: str) -> None:
    with pytest.raises(AssemblyError) as refused:
        load_recipe(recipe, [f'stages.0.validation=[{{path = "data.jsonl", {option}}}]'])
    assert f"once, as it is: leave out {option.split()[0]}" in str(refused.value)


def test_the_best_state_was_the_one_with_the_easiest_validation_data(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    lines(tmp_path / "hard.jsonl", *(talk(f"{i}?", "qzx jvk wpy " * i) for i in range(1, 4)))
    out = tmp_path / "out"
    given = ["stages.0.checkpoint_every=2", "stages.0.rates={language_model = 1e-2}"]
    train(recipe, out, *given, 'stages.0.validation=[{path = "data.jsonl"}]')
    first = json.loads((out / "best-00.json").read_text())
    capsys.readouterr()
    train_command(
        recipe, out, [*given, 'stages.0.validation=[{path = "hard.jsonl"}]', "stages.0.steps=8", 'name="more"']
    )
    second = json.loads((out / "best-00.json").read_text())
    assert second["step"] > 4
    assert second["validation_loss"] > first["validation_loss"]
    assert (
        "validation_loss of sft: another figure or other data than before, its best starts anew"
        in capsys.readouterr().out
    )
    train_command(
        recipe, out, [*given, 'stages.0.validation=[{path = "hard.jsonl"}]', "stages.0.steps=10", 'name="more"']
    )
    assert "anew" not in capsys.readouterr().out
    assert {s.name for s in states(out)} >= {json.loads((out / "best-00.json").read_text())["state"]}


# ---------------------------------------------------------------- one folder, two runs

SECOND = """
import sys
import tarfile
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.data.bad import BadSample
from andes_training.data.inspection import problems
from andes_training.data.samples import stage_samples
from andes_training.data.shards import find_files, open_shard
from andes_training.progress import Progress
from andes_training.recipe import DataRecipe, Recipe, StageRecipe, load_recipe
recipe = load_recipe(Path(sys.argv[1]))
class Slow(Progress):
    def show(self, event):
        super().show(event)
        if event.kind == "step" and event.step == 1:
            print("begun", flush=True)
            sys.stdin.readline()
Pipeline.from_plugins(**recipe.pipeline).train(recipe, sys.argv[2], progress=Slow(sys.argv[2]))
"""


def test_two_runs_in_one_folder_broke_each_other(recipe: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "out", subprocess.PIPE
    command = [sys.executable, "-c", SECOND, str(recipe), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdin=text, stdout=text, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "begun\n"
        writing = out / ".state-00-00000002.partial-00000000-1-00000000"
        writing.mkdir()
        with pytest.raises(TrainingError, match=rf"(?s)another run is at work.*process {first.pid} trains in it"):
            train(recipe, out)
        assert writing.is_dir()
        first.communicate("go on\n")
    assert first.returncode == 0
    assert [row["step"] for row in figures(out)] == [1, 2, 3, 4]
    train(recipe, out, "stages.0.steps=5")
    assert not writing.exists()
    assert len(figures(out)) == 5


@pytest.mark.parametrize("option", ["samples", "tokens", "repeat"])
def test_an_epoch_beyond_all_memory_was_begun_and_could_not_be_stopped(
    recipe: Path, tmp_path: Path, option: str
) -> None:
    recipe.write_text(recipe.read_text().replace('"data.jsonl" }', f'"data.jsonl", {option} = {10**12} }}'))
    with pytest.raises(TrainingError, match=r"(?s)data\.jsonl: an epoch is too long.*100,000,000 at most"):
        train(recipe, tmp_path / "out")


# ---------------------------------------------------------------- andes data


def second_stage(recipe: Path) -> None:
    text = recipe.read_text()
    recipe.write_text(f"{text}\n{text[text.index('[[stages]]') :]}")


def checked(*arguments: object) -> dict[str, Any]:
    code, out, err = invoke("data", "check", *arguments, "--json")
    assert code in (0, 1), err
    return json.loads(out)  # type: ignore[no-any-return]


def test_check_did_not_read_validation_data(recipe: Path, tmp_path: Path) -> None:
    lines(tmp_path / "val.jsonl", talk("x", "y", "gone.png"))
    recipe.write_text(recipe.read_text() + 'validation = [{ path = "val.jsonl" }]\n')
    found = checked("--recipe", recipe)
    assert (found["samples"], found["reasons"]) == (5, {"picture": 1})


def test_check_counted_a_file_twice_that_two_stages_use(recipe: Path, tmp_path: Path) -> None:
    second_stage(recipe)
    assert checked("--recipe", recipe)["samples"] == 4
    assert checked(tmp_path / "data.jsonl", tmp_path / "data.jsonl")["samples"] == 4


def test_check_ignored_the_stage_of_a_recipe_or_blamed_none(recipe: Path, tmp_path: Path) -> None:
    second_stage(recipe)
    lines(tmp_path / "other.jsonl", talk("a", "b"))
    recipe.write_text('other.jsonl"'.join(recipe.read_text().rsplit('data.jsonl"', 1)))
    assert [checked("--recipe", recipe, "--stage", n)["samples"] for n in (0, 1)] == [4, 1]
    code, _, err = invoke("data", "check", "--recipe", recipe, "--stage", "7")
    assert (code, "no stage 7" in err) == (1, True)
    code, _, err = invoke("data", "check", tmp_path / "data.jsonl", "--stage", "7")
    assert (code, "--recipe" in err, "None" in err) == (2, True, False)


def test_check_refused_every_line_of_a_stage_that_makes_its_own_batches(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("andes_grpo")
    picture = {"type": "image_url", "image_url": {"url": "gone.png"}}
    lines(
        tmp_path / "data.jsonl",
        {"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2"},
        {"messages": [{"role": "user", "content": [picture]}], "answer": "2"},
        {"messages": [{"role": "owner", "content": "?"}], "answer": "2"},
        {"messages": [], "answer": "2"},
        {"messages": [{"role": "user", "content": "1 + 1?"}], "answer": "2", "think": "yes"},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "2"}], "answer": "2"},
    )
    grpo = '"verifiers", { grpo = { rewards = { exact = 1.0 }, group = 2, prompts_per_step = 2, max_answer = 4 } }'
    recipe.write_text(recipe.read_text().replace("{ sft = { rate = 1e-3 } }", grpo).replace('"sft"', '"grpo"'))
    found = checked("--recipe", recipe)
    assert [p["where"][-1] for p in found["problems"]] == ["2", "3", "4", "5", "6"]
    assert [p["reason"] for p in found["problems"][3:]] == ["think", "shape"]
    (facts,) = json.loads(invoke("data", "stats", "--recipe", recipe, "--json")[1])
    assert sum(facts["unusable"].values()) == 3


def test_stats_called_usable_what_check_refuses(recipe: Path, tmp_path: Path) -> None:
    bad = [talk("x", " "), talk("x", "y" * 400), {**talk("x", "y"), "think": "no"}, talk("x", "y", "gone.png")]
    Image.new("RGB", (1400, 1400), "red").save(tmp_path / "large.png")
    path = lines(tmp_path / "bad.jsonl", *bad, talk("x", "y", "large.png"), talk("x", "y"))
    recipe.write_text(recipe.read_text() + "max_patches = 64\nimage = { max_size = 1400 }\n")
    for recipes in ((), ("--recipe", recipe)):
        (facts,) = json.loads(invoke("data", "stats", path, *recipes, "--json")[1])
        assert facts["unusable"] == checked(path, *recipes)["reasons"]
        assert facts["conversations"] == (1 if recipes else 3)


# ---------------------------------------------------------------- data that was lost


def shard(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_captions_of_another_encoding_were_learnt_with_marks_in_them(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "a.tar", a__png=b"", a__txt="caf\u00e9".encode("latin-1"), b__png=b"", b__txt="caf\u00e9".encode()
    )
    opened = open_shard(path)
    with pytest.raises(BadSample, match="caption is no UTF-8"):
        opened.entry(0)
    assert opened.entry(1)["messages"][1]["content"] == "caf\u00e9"


@pytest.mark.parametrize("names", [("a__PNG", "a__png"), ("a__json", "a__JSON")])
def test_the_second_of_two_members_that_differ_by_case_replaced_the_first(tmp_path: Path, names: Any) -> None:
    path = shard(tmp_path / "a.tar", **dict.fromkeys(names, b"{}"), a__txt=b"x")
    with pytest.raises(BadSample, match=r"(?s)cannot be unpacked.*two members are named"):
        open_shard(path).entry(0)


def test_a_folder_of_shards_left_out_files_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "fold"
    folder.mkdir()
    for name in ("a.jsonl", "c.JSONL"):
        lines(folder / name, talk("a", "b"))
    for name in (".hidden.json", "x.PNG", "README.md"):
        (folder / name).write_bytes(b"")
    (folder / "pictures").mkdir()
    samples = stage_samples([DataRecipe(path=folder)], Path())
    assert [shard.path.name for shard in samples.sources[0].shards] == ["a.jsonl", "c.JSONL"]
    stage_samples([DataRecipe(path=folder)], Path())
    assert [record.getMessage() for record in caplog.records] == [f"{folder}: not read as data: README.md"]
    (folder / "more").mkdir()
    for name in ("b.jsonl.gz", "d.json", "more/e.jsonl"):
        (folder / name).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"(?s)holds data that is not read.*b\.jsonl\.gz, d\.json, more"):
        find_files(folder)


def test_a_line_with_messages_and_conversations_lost_its_messages(tmp_path: Path) -> None:
    one = talk("a", "b")["messages"]
    path = lines(
        tmp_path / "both.jsonl", {"messages": one, "conversations": [one]}, {"messages": one, "conversations": None}
    )
    (problem,) = problems(stage_samples([DataRecipe(path=path)], Path()))
    assert (problem.where, problem.reason, problem.what) == (f"{path}:1", "shape", "has `messages` and `conversations`")


def test_the_last_of_two_equal_keys_was_taken_in_silence(tmp_path: Path) -> None:
    line = json.dumps(talk("a", "b"))
    path = lines(
        tmp_path / "twice.jsonl", line[:-1] + ', "messages": []}\n', line.replace('"content"', '"role"') + "\n", line
    )
    found = list(problems(stage_samples([DataRecipe(path=path)], Path())))
    assert [(p.where[-1], p.reason, p.why) for p in found] == [
        ("1", "json", "the key 'messages' stands twice in one object"),
        ("2", "json", "the key 'role' stands twice in one object"),
    ]


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("stages.0.warmup=1000", "a warmup of 1000 steps does not end within 4"),
        ("stages.0.floor=50.0", "floor"),
        ("stages=[]", "stages"),
    ],
)
def test_a_recipe_that_cannot_be_meant_was_accepted(recipe: Path, option: str, message: str) -> None:
    with pytest.raises(AssemblyError) as refused:
        load_recipe(recipe, [option])
    assert message in str(refused.value)


# ---------------------------------------------------------------- commands


def test_the_path_of_a_recipe_could_not_be_trained(recipe: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_plugins(**load_recipe(recipe).pipeline)
    assert (pipeline.train(str(recipe), tmp_path / "out") / "andes.json").is_file()
    with pytest.raises(TrainingError, match=r"(?s)is no recipe.*it is a dict"):
        pipeline.train({"name": "x"}, tmp_path / "b")


def test_preview_had_no_json_and_failed_raw_where_nothing_can_be_written(recipe: Path, tmp_path: Path) -> None:
    page, data = tmp_path / "p.html", tmp_path / "data.jsonl"
    assert json.loads(invoke("data", "preview", data, "-o", page, "--json")[1]) == {"samples": 4, "page": str(page)}
    for out in (data / "p.html", tmp_path):
        code, _, err = invoke("data", "preview", data, "-o", out)
        assert (code, "cannot be written" in err) == (1, True)


def test_report_failed_raw_where_nothing_can_be_written(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    train(recipe, tmp_path / "out", "stages.0.steps=2")
    (tmp_path / "out" / "report.html").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_report(tmp_path / "out")


def test_a_run_that_was_stopped_told_programs_nothing_and_people_half(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def stop(self: Stopping) -> Stopping:
        self.signal = signal.SIGINT
        return self

    monkeypatch.setattr(Stopping, "__enter__", stop)
    again = f"andes train {recipe} --out {tmp_path / 'out'} --set stages.0.steps=3 --accept-changed-data"
    for as_json in (True, False):
        given: dict[str, Any] = {"accept_changed_data": True, "as_json": as_json}
        with pytest.raises(typer.Exit) as left:
            train_command(recipe, tmp_path / "out", ["stages.0.steps=3"], **given)
        assert left.value.exit_code == 130
        told = capsys.readouterr()
        if as_json:
            found = json.loads(told.out)
            assert (found["stopped"], found["again"]) == ("SIGINT", f"{again} --json")
        else:
            assert told.err.strip().endswith(again)


@pytest.mark.parametrize("rates", ["", "mlp = 1e-2"])
def test_an_averaged_adapter_lay_elsewhere_and_its_base_nowhere(recipe: Path, tmp_path: Path, rates: str) -> None:
    pytest.importorskip("peft")
    out = tmp_path / "out"
    given = ["stages.0.lora={rank = 2}", f"stages.0.rates={{{rates}}}", "stages.0.ema=0.5"]
    train(recipe, out, *given, 'stages.0.ema_export="beside"')
    assert [path.name for path in (out / "adapters").iterdir()] == ["sft"]
    base = out / "ema-00" / "model" if rates else out / "model"
    Pipeline.from_pretrained(base).add_adapter("averaged", out / "ema-00")
    Pipeline.from_pretrained(out / "model").add_adapter("last", out / "adapters" / "sft")
    assert (out / "ema-00" / "model").exists() == bool(rates)


@pytest.mark.parametrize("folder", [".", "/data/runs"])
def test_facts_of_a_recipe_are_the_same_wherever_it_lies(folder):
    stage = {"stage": "sft", "steps": 1, "floor": 0.25, "data": [DataRecipe(path=Path("d.jsonl"))]}
    pipeline = {"plugins": [{"qwen3": {"tokenizer": f"{folder}/tokenizer"}}]}
    facts = Recipe(name="a", pipeline=pipeline, stages=[StageRecipe(**stage)], folder=Path(folder)).facts()
    assert facts["stages"][0]["floor"] == 0.25
    assert facts["stages"][0]["weight_decay"] == 0.05
    assert facts["stages"][0]["data"][0]["path"].endswith("jsonl")
    assert json.loads(json.dumps(facts)) == facts
