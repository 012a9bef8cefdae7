"""Faults that were found by use; each test names its row of the list."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from andes_training import state, stopping
from andes_training.cli.train import train as train_command
from andes_training.data.inspection import problems
from andes_training.data.samples import stage_samples
from andes_training.progress import Progress
from andes_training.reading import stage_maker
from andes_training.recipe import DataRecipe, StageRecipe, load_recipe, open_pipeline
from andes_training.state import states
from andes_training.step import freeze
from attrs import evolve
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError, TrainingError
from andes_sdk.files import write_atomically

FAULTS = Path(__file__).parent / "faults"
PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def lines(path: Path, *entries: Any) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Six steps on twelve texts, one sample a pack."""
    lines(tmp_path / "data.jsonl", *(talk(f"what is {i}?", f"it is {i}") for i in range(12)))
    path = tmp_path / "recipe.toml"
    path.write_text("""
name = "faults"
threads = 1
[pipeline]
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, { sft = { rate = 1e-3 } }]
[[stages]]
stage = "sft"
steps = 6
checkpoint_every = 2
max_tokens = 40
data = [{ path = "data.jsonl" }]
""")
    return path


def train(recipe: Path, out: Path, *overrides: str, **options: Any) -> Pipeline:
    loaded = load_recipe(recipe, overrides)
    pipeline = Pipeline.from_plugins(**loaded.pipeline)
    pipeline.train(loaded, out, progress=Progress(out), **options)
    return pipeline


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- several processes

CODE = """
import sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]), sys.argv[3:])
Pipeline.from_plugins(**recipe.pipeline).train(recipe, sys.argv[2], progress=Progress(sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["mixed", pytest.param("texts", marks=pytest.mark.slow)])
def test_t2_two_processes_treat_a_module_without_pictures_as_one_does(tmp_path: Path, name: str) -> None:
    shutil.copytree(FAULTS / "processes", tmp_path / "in")
    recipe, script = tmp_path / "in" / f"{name}.toml", tmp_path / "train.py"
    before = Pipeline.from_plugins(**load_recipe(recipe).pipeline).model.state_dict()
    train(recipe, tmp_path / "one")
    script.write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(recipe), str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=2e-5)
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two"))
    encoder = [k for k in one if k.startswith("vision_encoder.")]
    # float32; Adam magnifies rounding, but a decay or a momentum that only one has moved them by 4e-3
    assert max(float((one[k] - two[k]).abs().max()) for k in encoder) < 5e-4
    if name == "texts":
        assert all(torch.equal(before[k], two[k]) for k in encoder)


# ---------------------------------------------------------------- data


def found(folder: Path, name: str, *, pipeline: Pipeline | None = None) -> list[tuple[str, str]]:
    """Place and reason of each problem, without a model and, if one is given, as its stage sees them."""
    samples = stage_samples([DataRecipe(path=Path(name))], folder)
    maker = None
    if pipeline is not None:
        stage = StageRecipe(stage="sft", data=[], steps=1)
        maker = stage_maker(pipeline, stage, pipeline.pick("training_stages", "sft"))
    return [(p.where.rpartition("/")[2], p.reason) for p in problems(samples, maker)]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([*PLUGINS, "sft"])


def test_t3_conversations_with_other_pictures_are_refused_with_file_and_line(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    for name in ("swap.jsonl", "skip.jsonl"):
        assert found(FAULTS, name) == [(f"{name}:1", "picture")]
        assert found(FAULTS, name, pipeline=pipeline) == [(f"{name}:1", "picture")]
    for name in ("swap.toml", "swap.jsonl", "skip.toml", "skip.jsonl", "red.png", "blue.png"):
        shutil.copy(FAULTS / name, tmp_path)
    with pytest.raises(TrainingError, match=r"swap\.jsonl:1: its conversations have different pictures"):
        train(tmp_path / "swap.toml", tmp_path / "swap")
    train(tmp_path / "skip.toml", tmp_path / "skip")
    (skipped,) = (tmp_path / "skip" / "bad_samples.jsonl").read_text().splitlines()
    assert json.loads(skipped)["where"].endswith("skip.jsonl:1")


def test_t3_a_picture_after_an_answer_cannot_be_shared(tmp_path: Path, pipeline: Pipeline) -> None:
    shutil.copy(FAULTS / "red.png", tmp_path)
    late = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": [{"type": "image", "image": "red.png"}]},
    ]
    many = [[*late, {"role": "assistant", "content": word}] for word in ("red", "blue")]
    lines(tmp_path / "late.jsonl", {"conversations": many}, {"messages": many[0]})
    assert found(tmp_path, "late.jsonl") == found(tmp_path, "late.jsonl", pipeline=pipeline)
    assert found(tmp_path, "late.jsonl") == [("late.jsonl:1", "picture")]


@pytest.mark.parametrize(
    ("part", "line", "reason"),
    [
        ({"type": "image", "index": 0}, {"images": ["red.png"]}, "message"),
        ({"type": "image", "path": "blue.png"}, {"images": ["red.png"]}, "message"),
        ({"type": "image", "image": "red.png", "min_pixels": 4}, {}, "message"),
        ({"type": "image", "image": "red.png", "resized_height": 28}, {}, "message"),
        ({"type": "image_url", "image_url": {"url": "red.png", "max_pixels": 4}}, {}, "message"),
        ({"type": "image", "url": "red.png"}, {}, "message"),
        ({"type": "image", "image": "red.png"}, {"videos": ["a.mp4"]}, "shape"),
        ({"type": "image", "image": "red.png"}, {"sytem": "be brief"}, "shape"),
        ({"type": "image"}, {"image": "red.png", "images": ["red.png"]}, "picture"),
        ({"type": "image", "image": "red.png"}, {"system": 3}, "shape"),
    ],
)
def test_t4_what_nothing_reads_is_refused_with_file_and_line(
    tmp_path: Path, pipeline: Pipeline, part: dict, line: dict, reason: str
) -> None:
    for name in ("red.png", "blue.png"):
        shutil.copy(FAULTS / name, tmp_path)
    messages = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "red"}]
    lines(tmp_path / "keys.jsonl", talk("?", "fine", id=7), {"messages": messages, **line})
    assert found(tmp_path, "keys.jsonl") == [("keys.jsonl:2", reason)]
    assert found(tmp_path, "keys.jsonl", pipeline=pipeline) == [("keys.jsonl:2", reason)]


def test_t4_a_system_text_and_one_picture_are_honoured(tmp_path: Path) -> None:
    shutil.copy(FAULTS / "red.png", tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "red"}]
    lines(tmp_path / "keys.jsonl", {"messages": messages, "system": "be brief", "image": "red.png"})
    (sample,) = stage_samples([DataRecipe(path=Path("keys.jsonl"))], tmp_path)
    assert sample.entry["messages"] == [{"role": "system", "content": "be brief"}, *messages]
    assert sample.entry["images"] == ["red.png"]
    assert found(tmp_path, "keys.jsonl") == []


def test_t10_answers_without_text_are_told(tmp_path: Path, pipeline: Pipeline) -> None:
    wanted = [(f"empty_answer.jsonl:{line}", "unsupervised") for line in (1, 2)]
    assert found(FAULTS, "empty_answer.jsonl") == wanted
    assert found(FAULTS, "empty_answer.jsonl", pipeline=pipeline) == wanted


def test_t5_a_run_does_not_go_on_with_other_data_unawares(recipe: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path / "data.jsonl"
    whole = data.read_text().splitlines(keepends=True)
    data.write_text("".join([*whole[:6], "{\n", *whole[6:]]))
    with pytest.raises(TrainingError, match=r"data\.jsonl:7"):
        train(recipe, out, "stages.0.steps=40")
    assert states(out)
    data.write_text("".join(whole))
    with pytest.raises(TrainingError, match=r"data\.jsonl: the data has changed since the state was saved"):
        train(recipe, out, "stages.0.steps=40")
    assert train(recipe, out, "stages.0.steps=40", accept_changed_data=True)
    assert metrics(out)[-1]["step"] == 40


# ---------------------------------------------------------------- numbers


def test_t6_a_model_opened_in_half_precision_learns_in_float32_on_both_entries(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["stages.0.steps=2", "stages.0.rates={language_model = 1e-6}"])
    Pipeline.from_plugins(PLUGINS).save_pretrained(tmp_path / "base", dtype="bfloat16")
    before = load_file(tmp_path / "base" / "model.safetensors")
    opened = Pipeline.from_pretrained(tmp_path / "base", plugins=["sft"])
    assert opened.model.dtype == torch.bfloat16
    opened.train(loaded, tmp_path / "a")
    assert opened.plan.dtype == "float32"
    started = Pipeline.from_plugins([*PLUGINS, "sft"], weights=tmp_path / "base")
    started.train(loaded, tmp_path / "b")
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in "ab")
    assert all(torch.equal(one[k], two[k]) for k in one)
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    moved = (one[name] != before[name].float()).float().mean()
    assert float(moved) > 0.99


def test_t7_a_gradient_that_is_not_finite_stops_before_the_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    loaded = load_recipe(recipe)
    pipeline = Pipeline.from_plugins(**loaded.pipeline)
    weight = pipeline.model.language_model.model.layers[0].mlp.up_proj.weight
    calls: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * math.inf if len(calls) == 4 else gradient

    handle = weight.register_hook(spoil)
    with pytest.raises(TrainingError, match="not finite at step 4") as caught:
        pipeline.train(loaded, out)
    assert caught.value.who == "language_model.model.layers.0.mlp.up_proj.weight"
    assert all(bool(p.isfinite().all()) for p in pipeline.model.parameters())
    handle.remove()
    assert [s.name[-1] for s in states(out)] == ["2"]
    train(recipe, out)
    train(recipe, tmp_path / "whole")
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[k], two[k]) for k in one)


# ---------------------------------------------------------------- names


LORA = {"rank": 2, "alpha": 4, "targets": ["attention"], "rate": 1e-2}


def lora_recipe(recipe: Path, *loras: dict[str, Any]) -> Path:
    stage = 'stage = "sft"\nsteps = 2\nmax_tokens = 40\ndata = [{ path = "data.jsonl" }]\n'
    head = recipe.read_text().partition("[[stages]]")[0]
    texts = []
    for lora in loras:
        options = "\n".join(f"{k} = {json.dumps(v)}" for k, v in {**LORA, **lora}.items())
        texts.append(f"[[stages]]\n{stage}[stages.lora]\n{options}\n")
    recipe.write_text(head + "".join(texts))
    return recipe


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        ([{}, {}], "two stages save adapters as 'sft'"),
        ([{"name": "a"}, {"name": "a"}], "two stages save adapters as 'a'"),
        ([{"name": ".."}], "name is '..'"),
        ([{"name": "a/b"}], "name is 'a/b'"),
        ([{"name": "/tmp/x"}], "name is '/tmp/x'"),
        ([{"chain": True}], "needs an earlier adapter"),
        ([{}, {"chain": True, "rank": 3}], "of the same matrices"),
    ],
)
def test_t8_names_of_adapters_are_names_and_differ(recipe: Path, loras: list[dict], message: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        load_recipe(lora_recipe(recipe, *loras))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", ".hidden"])
def test_t8_stages_and_runs_have_names_too(recipe: Path, name: str) -> None:
    with pytest.raises(AssemblyError):
        load_recipe(recipe, [f'stages.0.stage="{name}"'])
    for option in ("project", "name"):
        with pytest.raises(AssemblyError):
            Pipeline.from_plugins([*PLUGINS, {"tracking": {"backend": "trackio", option: name}}])


def test_t8_a_stage_goes_on_with_an_adapter_where_it_says_so(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    path = lora_recipe(recipe, {"name": "first"}, {"name": "first", "chain": True, "rate": 1e-9})
    train(path, tmp_path / "chained")
    train(lora_recipe(recipe, {"name": "first"}), tmp_path / "alone")
    one, two = (
        load_file(tmp_path / out / "adapters" / "first" / "adapter_model.safetensors") for out in ("chained", "alone")
    )
    assert all(torch.allclose(one[k], two[k], atol=1e-6) for k in one)  # a rate of 1e-9 moved it no further


# ---------------------------------------------------------------- disks


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
@pytest.mark.parametrize("late", [False, True])
def test_t12_a_full_disk_is_our_error_and_the_state_before_stays(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, late: bool
) -> None:
    out, before = tmp_path / "out", state.save_file
    count: list[int] = []

    def full(*arguments: Any, **options: Any) -> None:
        count.append(1)
        if len(count) > 1:
            raise error
        before(*arguments, **options)

    if late:  # while the trained model is written
        monkeypatch.setattr(
            "andes_sdk.storage.checkpoint.saving.write_weights", lambda *a, **k: (_ for _ in ()).throw(error)
        )
    else:
        monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(TrainingError, match="cannot be saved") as caught:
        train(recipe, out)
    assert "No space left" in caught.value.why
    monkeypatch.undo()
    assert next(s.name for s in states(out)) == ("state-00-00000004" if late else "state-00-00000002")
    assert [p.name for p in out.glob(".*")] == [".lock"]
    train(recipe, out)
    assert metrics(out)[-1]["step"] == 6


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "change",
    [
        "stages.0.rates={language_model = -1e-3}", "stages.0.rates={language_model = nan}",
        "stages.0.rates={language_model = inf}", "stages.0.horizon=5", "stages.0.steps=0", "stages.0.epochs=2",
        "stages.0.weight_decay=nan", "stages.0.floor=inf", "stages.0.clip=nan", "stages.0.lora={rate = inf}",
        "stages.0.lora={rate = nan}", "keep_states=0", "stages.0.validate_every=3",
    ],
)  # fmt: skip
def test_t13_numbers_that_mean_nothing_are_refused(recipe: Path, change: str) -> None:
    with pytest.raises(AssemblyError):
        load_recipe(recipe, [change])


def test_t13_a_plugins_own_rate_is_checked_too(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("rate = 1e-3", "rate = inf"))
    with pytest.raises(AssemblyError) as caught:
        train(recipe, tmp_path / "out")
    assert "got inf" in str(caught.value)
    parameter = torch.nn.Linear(2, 2)
    for rate in (math.inf, math.nan, -1.0):
        with pytest.raises(TrainingError, match=f"the learning rate is {rate}"):
            freeze(parameter, {"weight": rate})


def test_t13_a_byte_order_mark_in_a_recipe_is_skipped(recipe: Path) -> None:
    plain = load_recipe(recipe)
    recipe.write_bytes(b"\xef\xbb\xbf" + recipe.read_bytes())
    assert load_recipe(recipe).digest() == plain.digest()


# ---------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_t14_a_signal_saves_a_state_and_says_how_to_go_on(recipe: Path, tmp_path: Path, name: str, code: int) -> None:
    out = tmp_path / "out"
    andes = [sys.executable, "-W", "ignore", "-m", "andes_sdk", "train", str(recipe), "--out", str(out)]
    child = subprocess.Popen([*andes, "--set", "stages.0.steps=100000", "--set", "stages.0.checkpoint_every=100000"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.time() + 120
    while not ((out / "metrics.jsonl").exists() and metrics_begun(out)) and time.time() < deadline:
        time.sleep(0.05)
    child.send_signal(getattr(signal, name))
    _, told = child.communicate(timeout=300)
    assert child.returncode == code
    (saved,) = states(out)
    step = int(saved.name.rpartition("-")[2])
    assert f"stopped by {name} after step {step} of stage 1" in told
    assert f"andes train {recipe} --out {out} --set stages.0.steps=100000" in told
    assert metrics(out)[-1]["step"] == step


def metrics_begun(out: Path) -> bool:
    return (out / "metrics.jsonl").read_bytes().count(b"\n") > 2


def test_t14_a_run_that_was_stopped_goes_on_to_the_bit(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")

    class Soon(stopping.Stopping):
        """Asks to stop after the first step."""

        signal = int(signal.SIGTERM)

        def __init__(self) -> None: ...

    with pytest.raises(stopping.Stopped):
        train(recipe, tmp_path / "out", stopping=Soon())
    assert [s.name for s in states(tmp_path / "out")] == ["state-00-00000001"]
    train(recipe, tmp_path / "out")
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("whole", "out"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_t14_epochs_stand_for_steps(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(recipe, out, "stages.0.steps=0", "stages.0.epochs=2", "stages.0.checkpoint_every=7")
    rows = metrics(out)
    assert sum(row["samples"] for row in rows) == 24
    assert rows[-1]["epoch"] == 2.0
    factors = [row["rate_factor"] for row in rows]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 1.0
    assert factors[-1] < 0.1
    last = states(out)[-1]
    assert int(last.name.rpartition("-")[2]) == len(rows)
    shutil.rmtree(last)  # the state of step 7, 14 … goes on
    expected = load_file(out / "model" / "model.safetensors")
    train(recipe, out, "stages.0.steps=0", "stages.0.epochs=2", "stages.0.checkpoint_every=7")
    again = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(expected[k], again[k]) for k in again)
    assert len(metrics(out)) == len(rows)


def test_t14_harmless_options_may_change_and_others_are_named(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(recipe, out, "keep_states=3")
    assert len(states(out)) == 3
    told: list[Any] = []
    loaded = load_recipe(
        recipe, ["stages.0.steps=8", "stages.0.log_every=1", "stages.0.checkpoint_every=1", 'name="x"']
    )

    class Shown:
        def show(self, event: Any) -> None:
            told.append(event)

    Pipeline.from_plugins(**loaded.pipeline).train(loaded, out, progress=Shown())
    (resumed,) = [e for e in told if e.kind == "resumed"]
    assert "stages.0.steps: 6 before, 8 now" in resumed.values["changed"]
    assert [e.step for e in told if e.kind == "step"] == [7, 8]
    with pytest.raises(TrainingError, match=r"stages\.0\.warmup: 0 before, 1 now"):
        train(recipe, out, "stages.0.steps=9", "stages.0.warmup=1")
    with pytest.raises(TrainingError, match=r"stages\.0\.steps: 8 before, 7 now"):
        train(recipe, out, "stages.0.steps=7")


def test_t14_the_state_with_the_smallest_validation_loss_stays(recipe: Path, tmp_path: Path) -> None:
    lines(tmp_path / "other.jsonl", *(talk(f"what is {i}?", f"it is {i}") for i in range(20, 24)))
    given = ('stages.0.validation=[{path = "other.jsonl"}]', "stages.0.validate_every=1")
    out = tmp_path / "out"
    train(recipe, out, *given, "stages.0.steps=8", "stages.0.rates={language_model = 3e-2}", "keep_states=1",
          "stages.0.checkpoint_every=100")  # fmt: skip
    losses = {row["step"]: row["validation_loss"] for row in metrics(out)}
    assert len(losses) == 8
    best = json.loads((out / "best-00.json").read_text())
    smallest = min(losses, key=lambda step: losses[step])
    assert best.pop("data")
    assert best == {"step": smallest, "validation_loss": losses[smallest], "state": f"state-00-{smallest:08d}"}
    assert {s.name for s in states(out)} == {best["state"], "state-00-00000008"}
    plain = tmp_path / "plain"
    train(recipe, plain, "stages.0.steps=8", "stages.0.rates={language_model = 3e-2}")
    assert [r["loss"] for r in metrics(plain)] == [r["loss"] for r in metrics(out)]  # looking changed nothing


# ---------------------------------------------------------------- adapters


@pytest.fixture
def adapted(recipe: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter that was trained on it."""
    pytest.importorskip("peft")
    pipeline = Pipeline.from_plugins([*PLUGINS, "sft"], seed=3)
    pipeline.save_pretrained(tmp_path / "base", dtype="bfloat16")
    opened = Pipeline.from_pretrained(tmp_path / "base", plugins=["sft"])
    opened.train(
        load_recipe(lora_recipe(recipe, {"name": "mine", "targets": ["attention", "projector"]})), tmp_path / "o"
    )
    return tmp_path / "base", tmp_path / "o" / "adapters" / "mine"


def test_t15_an_adapter_is_refused_on_another_base(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pipeline = train(lora_recipe(recipe, {}), tmp_path / "out")
    folder = tmp_path / "out" / "adapters" / "sft"
    pipeline.add_adapter("own", folder)
    for dtype in ("float32", "bfloat16"):  # the base in whatever precision
        opened = Pipeline.from_pretrained(tmp_path / "out" / "model", dtype=dtype)
        opened.add_adapter("own", folder)
    other = Pipeline.from_plugins(PLUGINS, seed=9)
    with pytest.raises(ConfigError, match="belongs to another base"):
        other.add_adapter("own", folder)
    other.add_adapter("own", folder, any_base=True)


def test_t15_what_training_saved_is_merged_into_its_base(adapted: tuple[Path, Path], tmp_path: Path) -> None:
    from andes_adapters.cli import app

    base, adapter = adapted
    done = CliRunner().invoke(app, ["merge", str(base), str(adapter), str(tmp_path / "m"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["base_checked"]
    merged, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "m", base))
    changed = {name.partition(".")[0] for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {"language_model"}  # the data has no pictures, so the projector's adapter learned nothing
    Pipeline.from_plugins(PLUGINS, seed=9).save_pretrained(tmp_path / "other")
    refused = CliRunner().invoke(app, ["merge", str(tmp_path / "other"), str(adapter), str(tmp_path / "n")])
    assert refused.exit_code == 1
    assert "another base" in refused.output


def test_t15_the_adapters_folder_is_named_at_the_end(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("peft")
    train_command(lora_recipe(recipe, {}), tmp_path / "out")
    told = capsys.readouterr().out
    assert f"trained adapter: {tmp_path / 'out' / 'adapters' / 'sft'}" in told
    assert f"its base, as it was: {tmp_path / 'out' / 'model'}" in told
    assert "trained model" not in told


# ---------------------------------------------------------------- states and leftovers


def shorten(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight.language_model.model.embed_tokens.weight"] = torch.ones(1)


def retype(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    name = "optimizer.exp_avg.language_model.model.embed_tokens.weight"
    tensors[name] = tensors[name].double()


def forget(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    name = "optimizer.exp_avg.language_model.model.embed_tokens.weight"
    del tensors[name]
    index = json.loads((folder / "index.json").read_text())
    del index[name]
    (folder / "index.json").write_text(json.dumps(index))


def stand(**place: Any) -> Any:
    def change(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
        data = json.loads((folder / "position.json").read_text())
        data["position"] |= place
        (folder / "position.json").write_text(json.dumps(data))

    return change


def escape(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(dict.fromkeys(index, "../../other.safetensors")))


@pytest.mark.parametrize(
    "change",
    [
        shorten, retype, forget, escape, stand(stage=-1), stand(stage=5), stand(epoch=10**30), stand(step=99),
        stand(step=True), stand(offset="1"), stand(unknown=1),
    ],
)  # fmt: skip
def test_s3_a_state_that_does_not_fit_is_refused(recipe: Path, tmp_path: Path, change: Any) -> None:
    out = tmp_path / "out"
    train(recipe, out, "stages.0.steps=2")
    folder = states(out)[-1]
    tensors = load_file(folder / "state-00000.safetensors")
    change(folder, tensors)
    save_file(tensors, folder / "state-00000.safetensors")
    data = json.loads((folder / "position.json").read_text())
    data["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data["sha256"]}
    (folder / "position.json").write_text(json.dumps(data))  # what is wrong is not the checksum
    with pytest.raises(TrainingError, match=r"state (is damaged|cannot be restored)"):
        train(recipe, out, "stages.0.steps=4")


@pytest.mark.parametrize("name", ["state-00000.safetensors", "index.json"])
def test_s3_a_byte_that_changed_in_a_state_is_found_and_nothing_is_trained(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    train(recipe, out, "stages.0.steps=2")
    path = states(out)[-1] / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"(?s)cannot be restored.*{name}: not as written"):
        train(recipe, out, "stages.0.steps=4")
    assert len(metrics(out)) == 2


def test_s9_training_in_which_nothing_would_learn_is_refused_before_the_first_step(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="nothing would learn"):
        train(recipe, tmp_path / "out", "stages.0.rates={mlp = 1e-3}")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_s9_packs_without_pictures_among_others_teach_the_projector_nothing(tmp_path: Path) -> None:
    shutil.copytree(FAULTS / "processes", tmp_path / "in")
    recipe = tmp_path / "in" / "mixed.toml"
    before = Pipeline.from_plugins(**load_recipe(recipe).pipeline).model.state_dict()
    after = train(recipe, tmp_path / "out", "stages.0.rates={mlp = 1e-3}").model.state_dict()
    assert {k.partition(".")[0] for k in after if not torch.equal(after[k], before[k])} == {"mlp"}


def test_s10_what_a_stopped_run_left_is_removed_by_the_next_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c",
         "import os, sys; from pathlib import Path; from andes_sdk.files import appearing\n"
         "with appearing(Path(sys.argv[1])) as folder: (folder / 'x').touch(); os._exit(1)", str(target)]
    )  # fmt: skip
    assert child.returncode == 1
    (dead,) = tmp_path.glob(".model.partial-*")
    old, new, foreign = (tmp_path / f".model.partial-{mark}" for mark in ("aaaaaaaa", "bbbbbbbb", "mine"))
    for path in (old, new, foreign):
        path.write_text("x")
    os.utime(old, (time.time() - 90_000,) * 2)
    write_atomically(tmp_path / "another", b"x")
    assert dead.exists()
    from andes_sdk.files import appearing

    with appearing(target) as folder:
        (folder / "y").touch()
    assert {p.name for p in tmp_path.glob(".model*")} == {new.name, foreign.name}
    assert dead.name in caplog.text
    assert old.name in caplog.text


def test_s10_the_only_copy_that_is_left_stays(tmp_path: Path) -> None:
    old = tmp_path / ".model.json.old-aaaaaaaa"
    old.write_text("x")
    os.utime(old, (time.time() - 90_000,) * 2)
    write_atomically(tmp_path / "model.json", b"x")
    assert old.exists()


# ---------------------------------------------------------------- start


@pytest.fixture
def started(recipe: Path, tmp_path: Path) -> Path:
    """The recipe without a pipeline, from a checkpoint that lacks the stage's plugin."""
    Pipeline.from_plugins(PLUGINS, seed=3).save_pretrained(tmp_path / "base")
    text = recipe.read_text().replace('name = "faults"', 'name = "faults"\nstart = "base"')
    whole = next(line for line in text.splitlines() if line.startswith("plugins = "))
    recipe.write_text(text.replace(whole, "plugins = [{ sft = { rate = 1e-3 } }]"))
    return recipe


def test_c6_a_recipe_with_start_takes_the_checkpoints_pipeline_and_adds_to_it(started: Path, tmp_path: Path) -> None:
    recipe = load_recipe(started)
    pipeline = open_pipeline(recipe)
    assert pipeline.plan.names == ("aimv2", "mlp", "qwen3", "sft")
    assert pipeline.weights == tmp_path / "base"
    trained = pipeline.train(recipe, tmp_path / "out")
    # what was trained knows its stage: nothing needs to be added
    text = started.read_text().replace('start = "base"', f"start = {json.dumps(str(trained))}")
    started.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("plugins", "[pipeline]"))))
    assert open_pipeline(load_recipe(started)).plan.names == ("aimv2", "mlp", "qwen3", "sft")


def test_c6_a_recipe_of_neither_pipeline_nor_start_is_told_both(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    with pytest.raises(TrainingError, match=r"(?s)names no plugins.*start = "):
        open_pipeline(evolve(loaded, pipeline={}))
    with pytest.raises(TrainingError, match="names weights twice"):
        open_pipeline(evolve(loaded, start="base", pipeline={"weights": "base"}))


def test_c6_a_dry_run_refuses_a_start_that_does_not_fit(started: Path, tmp_path: Path) -> None:
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    save_file({**tensors, name: torch.ones(3, 5)}, weights)
    app = typer.Typer()
    app.command()(train_command)
    result = CliRunner().invoke(app, [str(started), "--dry-run"])
    assert result.exit_code == 1
    assert f"{name}: " in " ".join(result.output.split())


def test_c6_a_pipeline_without_the_weights_of_start_is_refused(started: Path, tmp_path: Path) -> None:
    recipe = load_recipe(started)
    pipeline = Pipeline.from_plugins([*PLUGINS, "sft"])
    with pytest.raises(TrainingError, match=r"(?s)starts from .*base.*are random.*open_pipeline"):
        pipeline.train(recipe, tmp_path / "out")
