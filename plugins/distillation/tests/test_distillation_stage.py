"""The stage in the loop: what it learns, restarts to the bit, which teachers it refuses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_distillation import Distillation
from andes_distillation.stage import MAPS, DistillationStage, supervised_rows
from andes_distillation.teacher import difference
from andes_training.loss import next_token_loss
from andes_training.outlook import outlook
from andes_training.packing import collate
from andes_training.progress import Progress
from andes_training.reading import RowMaker, stage_samples
from andes_training.recipe import Recipe, load_recipe
from andes_training.state import states
from attrs import evolve
from PIL import Image
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, TrainingError
from andes_sdk.testing.elsewhere import started

TINY = str(Distillation.testing["teacher"])
MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
HIDDEN = ", hidden = 1.0, layers = [[-1, -1], [1, 1]]"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_run(folder: Path, *, options: str = "", stage: str = "", teacher: str = TINY) -> Path:
    """Packs of about two samples, every third without a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "white", "black", "grey")):
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        content: list[Any] = [{"type": "text", "text": "colour?"}]
        if i % 3:
            content.insert(0, {"type": "image_url", "image_url": {"url": f"{colour}.png"}})
        answer = {"role": "assistant", "content": f"it is {colour} " * (1 + i % 2)}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(
        f"""
name = "distilled"
seed = 3
threads = 1
[pipeline]
plugins = [{{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }},
           {{ distillation = {{ teacher = "{teacher}", rate = 1e-3, projector_rate = 1e-3, k = 16{options} }} }}]
[[stages]]
stage = "distillation"
steps = 6
max_tokens = 120
checkpoint_every = 2
data = [{{ path = "data.jsonl" }}]
{stage}
"""
    )
    return folder / "recipe.toml"


def opened(recipe: Path) -> tuple[Recipe, Pipeline]:
    loaded = load_recipe(recipe)
    return loaded, Pipeline.from_plugins(**loaded.pipeline)


def train(recipe: Path, out: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    loaded, pipe = opened(recipe)
    with Progress(out) as progress:
        model = pipe.train(loaded, out, progress=progress)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return metrics, load_file(model / "model.safetensors")


def batch_of(recipe: Path, pipe: Pipeline) -> Any:
    loaded, maker = load_recipe(recipe), RowMaker(pipe.processor)
    return collate([maker.row(s, random.Random(0)) for s in stage_samples(loaded.stages[0].data, loaded.folder)])


def test_the_loss_is_made_of_its_parts_and_each_model_reads_the_pictures_itself(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, options=", kl = 0.7, ce = 0.3, temperature = 2.0" + HIDDEN)
    _, pipe = opened(recipe)
    batch, stage = batch_of(recipe, pipe), pipe.pick("training_stages", "distillation")
    torch.manual_seed(0)
    stage.put_in(pipe.model)
    teacher = Pipeline.from_pretrained(TINY).model
    wanted = batch.labels != -100
    with torch.no_grad():
        loss, figures = stage.loss(pipe.model, batch)
        ce, _ = next_token_loss(pipe.model, batch)
        told, shown = supervised_rows(teacher, batch, [1, 1])
        said, seen = supervised_rows(pipe.model, batch, [2, 1])
        # over the 16 tokens that the teacher finds best and one bucket, in double precision
        one, two = ((m.logits(r).double() / 2).softmax(1) for m, r in ((teacher, told), (pipe.model, said)))
        ids = one.topk(16).indices
        p, q = ([x.gather(1, ids), 1 - x.gather(1, ids).sum(1, keepdim=True)] for x in (one, two))
        p, q = torch.cat(p, 1), torch.cat(q, 1)
        kl = float((p * (p / q).log()).sum(1).mean())
        maps = getattr(pipe.model, MAPS)
        squares = [(maps[str(n)](s) - t).square().mean() for n, (s, t) in enumerate(zip(seen, shown, strict=True))]
        hidden = float(sum(squares) / 2)
    assert int(wanted.sum()) == batch.tokens
    assert figures["kl"] == pytest.approx(kl, rel=1e-4)
    assert figures["ce"] == pytest.approx(float(ce), rel=1e-5)
    assert figures["hidden"] == pytest.approx(hidden, rel=1e-5)
    assert figures["agreement"] == pytest.approx(float((one.argmax(1) == two.argmax(1)).float().mean()))
    assert float(loss) == pytest.approx(0.7 * 4 * kl + 0.3 * float(ce) + hidden, rel=1e-4)
    with torch.no_grad():  # other pictures: the teacher says something else
        image = batch.media["image"]
        changed = evolve(batch, media={"image": evolve(image, data=-image.data)})
        assert not torch.allclose(supervised_rows(teacher, changed, [])[0], told)
    stage.take_out(pipe.model)
    assert not hasattr(pipe.model, MAPS)


@pytest.mark.parametrize("options", ["", HIDDEN])
def test_the_student_comes_to_say_what_the_teacher_says(tmp_path: Path, options: str) -> None:
    maps = ", distillation_maps = 5e-3" if options else ""
    stage = f"schedule = 'constant'\nrates = {{ language_model = 5e-3, mlp = 5e-3{maps} }}"
    recipe = write_run(tmp_path, options=", ce = 0.0" + options, stage=stage)
    (tmp_path / "recipe.toml").write_text(recipe.read_text().replace("steps = 6", "steps = 30"))
    names = set(opened(recipe)[1].model.state_dict())
    metrics, weights = train(recipe, tmp_path / "out")
    first, last = ([sum(m[f] for m in part) / 5 for f in ("kl", "agreement")] for part in (metrics[:5], metrics[-5:]))
    assert last[0] < 0.6 * first[0]
    assert last[1] > first[1]
    if options:
        assert metrics[-1]["hidden"] < 0.8 * metrics[0]["hidden"]
    assert set(weights) <= names  # no map is part of what is saved
    again = Pipeline.from_pretrained(tmp_path / "out" / "model")  # the teacher's path is not part of it either
    assert "none" in str(again.explain())


def test_with_no_weight_on_the_answers_they_do_not_matter(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, options=", ce = 0.0")
    _, pipe = opened(recipe)
    batch, stage = batch_of(recipe, pipe), pipe.pick("training_stages", "distillation")
    other = evolve(batch, labels=torch.where(batch.labels == -100, -100, (batch.labels + 1) % 500))
    with torch.no_grad():
        (one, few), (two, more) = stage.loss(pipe.model, batch), stage.loss(pipe.model, other)
    assert float(one) == float(two)
    assert few["ce"] != more["ce"]


def test_recomputed_activations_and_validation_change_no_step(tmp_path: Path) -> None:
    plain, weights = train(write_run(tmp_path / "a", options=HIDDEN), tmp_path / "a" / "out")
    more = 'recompute = true\nvalidation = [{ path = "data.jsonl" }]'
    other, again = train(write_run(tmp_path / "b", options=HIDDEN, stage=more), tmp_path / "b" / "out")
    assert [m["loss"] for m in other] == [m["loss"] for m in plain]
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert other[-1]["validation_loss"] < other[1]["validation_loss"]


def test_adapters_learn_from_the_teacher_and_maps_must_be_named_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="adapters are peft's")
    lora = "lora = { rank = 4, rate = 1e-2 }\nvalidation = [{ path = 'data.jsonl' }]"
    metrics, _ = train(write_run(tmp_path / "a", options=", ce = 0.0", stage=lora), tmp_path / "a" / "out")
    assert metrics[-1]["validation_loss"] < metrics[1]["validation_loss"]
    with pytest.raises(TrainingError, match="maps of the hidden states would not learn"):
        train(write_run(tmp_path / "b", options=HIDDEN, stage=lora), tmp_path / "b" / "out")
    named = lora + "\nrates = { distillation_maps = 1e-2 }"
    metrics, _ = train(write_run(tmp_path / "c", options=HIDDEN, stage=named), tmp_path / "c" / "out")
    assert metrics[-1]["validation_loss"] < metrics[1]["validation_loss"]


TRAIN = """
import sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]))
with Progress(Path(sys.argv[2])) as progress:
    Pipeline.from_plugins(**recipe.pipeline).train(recipe, sys.argv[2], progress=progress)
"""


@pytest.mark.parametrize("options", ["", HIDDEN])
def test_a_run_killed_in_the_middle_goes_on_to_the_bit(tmp_path: Path, options: str) -> None:
    recipe = write_run(tmp_path, options=options)
    metrics, whole = train(recipe, tmp_path / "whole")
    with started(TRAIN, [recipe, tmp_path / "cut"], tmp_path / "told") as child:
        deadline = time.monotonic() + 120
        while not states(tmp_path / "cut") and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, (tmp_path / "told.err").read_text()
    assert states(tmp_path / "cut")
    resumed, weights = train(recipe, tmp_path / "cut")
    assert [(m["loss"], m["kl"]) for m in resumed] == [(m["loss"], m["kl"]) for m in metrics]
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def test_going_on_with_another_teacher_is_refused(tmp_path: Path) -> None:
    teacher = shutil.copytree(TINY, tmp_path / "teacher")
    recipe = write_run(tmp_path, teacher=str(teacher))
    train(recipe, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "model")
    shutil.rmtree(states(tmp_path / "out")[-1])
    other = Pipeline.from_pretrained(teacher)
    with torch.no_grad():
        next(other.model.language_model.parameters()).mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    shutil.rmtree(teacher)
    shutil.move(tmp_path / "other", teacher)
    with pytest.raises(TrainingError, match="not the one that the run began with") as caught:
        train(recipe, tmp_path / "out")
    assert caught.value.who == str(teacher)


def other_tokens(**config: Any) -> Any:
    """A copy of the tiny teacher's tokenizer of which one thing differs."""
    tokenizer = Pipeline.from_pretrained(TINY).tokenizer

    class Other:
        def __getattr__(self, name: str) -> Any:
            return config.get(name, getattr(tokenizer, name))

    return Other()


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("vocab_size", 600, "tokenizer's vocab_size is 600, the student's 512"),
        ("eos", 1, "tokenizer's eos is 1"),
        ("placeholder", lambda kind: 7, "placeholder of image is id 7"),
        ("decode", lambda ids: "z", "its token 0 is 'z'"),
        ("encode", lambda text: [1], "cuts texts elsewhere"),
        ("render", lambda turns, think, generate: think, "chat template"),
    ],
)
def test_a_teacher_of_other_tokens_is_refused_by_the_part_that_differs(part: str, value: Any, message: str) -> None:
    student, teacher = (Pipeline.from_plugins([*MODEL]).meta_model() for _ in range(2))
    assert difference(teacher, student) == ""
    teacher.tokenizer = other_tokens(**{part: value})
    assert message in difference(teacher, student)


def test_a_teacher_of_other_sizes_is_refused_by_the_part_that_differs(tmp_path: Path) -> None:
    encoder = {"aimv2": {"preset": "tiny", "config": {"patch_size": 7}}}
    Pipeline.from_plugins([encoder, *MODEL[1:]]).save_pretrained(tmp_path / "patches")
    wider = {"qwen3": {"preset": "tiny", "config": {"vocab_size": 520}}}
    Pipeline.from_plugins([*MODEL[:2], wider]).save_pretrained(tmp_path / "logits")
    for name, message in (("patches", "encoder's patch_size is 7, the student's 14"), ("logits", "gives 520 logits")):
        recipe, pipe = opened(write_run(tmp_path, teacher=str(tmp_path / name)))
        with pytest.raises(TrainingError, match="does not fit the student") as caught:
            outlook(recipe, pipe)
        assert message in str(caught.value.why)


@pytest.mark.parametrize(("teacher", "message"), [("", "no teacher is named"), ("nowhere", "cannot be opened")])
def test_a_missing_teacher_is_told_before_anything_is_trained(tmp_path: Path, teacher: str, message: str) -> None:
    recipe, pipe = opened(write_run(tmp_path, teacher=teacher))
    with pytest.raises(TrainingError, match=message):
        outlook(recipe, pipe)
    with pytest.raises(TrainingError, match=message):
        pipe.train(recipe, tmp_path / "out")
    assert not states(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "'k' must be >= 1"),
        ({"temperature": 0.0}, "'temperature' must be > 0"),
        ({"kl": -1.0}, "'kl' must be >= 0"),
        ({"kl": 0.0}, "nothing of the teacher is learnt"),
        ({"hidden": 1.0}, "belong together"),
        ({"layers": [[0, 0]]}, "belong together"),
        ({"hidden": 1.0, "layers": [[1]]}, "pairs"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*MODEL, {"distillation": {"teacher": TINY, **options}}])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        (", hidden = 1.0, layers = [[5, 0]]", "", "layer 5 does not exist"),
        (", hidden = 1.0, layers = [[0, -3]]", "", "layer -3 does not exist"),
        (HIDDEN + ", map_rate = 0.0", "", "maps that do not learn"),
        (HIDDEN, "rates = { mlp = 1e-3 }", "maps of the hidden states would not learn"),
        (HIDDEN, 'ema = 0.5\nema_export = "beside"', "no average beside hidden states"),
    ],
)
def test_hidden_states_that_cannot_be_learnt_are_refused(
    tmp_path: Path, options: str, stage: str, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(write_run(tmp_path, options=options, stage=stage), tmp_path / "out")


def test_options_reach_the_stage(tmp_path: Path) -> None:
    options = {"teacher": TINY, "kl": 2.0, "k": 7, "projector_rate": 0.0}
    stage = Pipeline.from_plugins([*MODEL, {"distillation": options}]).pick("training_stages", "distillation")
    assert type(stage) is DistillationStage
    assert (stage.kl, stage.ce, stage.k, stage.temperature) == (2.0, 0.5, 7, 1.0)
    assert stage.rates(Pipeline.from_plugins([*MODEL]).meta_model()) == {"language_model": 1e-5}


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, options=HIDDEN, stage="accumulate = 2")
    recipe.write_text(recipe.read_text().replace("steps = 6", "steps = 3"))
    alone, _ = train(recipe, tmp_path / "alone")
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(recipe), str(tmp_path / "both")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(alone, both, strict=True):  # gradients are added up in another order
        for name in ("loss", "kl", "ce", "agreement", "hidden"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)
