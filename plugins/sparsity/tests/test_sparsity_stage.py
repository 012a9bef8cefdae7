"""Training with masks: gradients by hand, the pattern, the same mask once packed, restarts to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_distillation import Distillation
from andes_packing.formats import find
from andes_sparsity.masks import exact, keep_mask, matrices
from andes_sparsity.stage import SparseLinear, SparseStage, pull, sparse_layers
from andes_training.outlook import outlook
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from andes_training.state import states
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor
from torch.nn.functional import linear

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, TrainingError
from andes_sdk.testing.elsewhere import started

TINY = str(Distillation.testing["teacher"])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_run(folder: Path, *, options: str = "", stage: str = "steps = 8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(8):
        answer = {"role": "assistant", "content": f"it is number {i} " * (1 + i % 3)}
        lines.append(json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, answer]}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text(
        f"""
name = "sparse"
seed = 3
threads = 1
[pipeline]
plugins = [{{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }},
           {{ sparsity = {{ rate = 3e-3, every = 2, decay = 2e-3{options} }} }}]
[[stages]]
stage = "sparse"
{stage}
accumulate = 2
max_tokens = 120
checkpoint_every = 3
rates = {{ language_model = 3e-3 }}
data = [{{ path = "data.jsonl" }}]
"""
    )
    return folder / "recipe.toml"


def trained(recipe: Path, out: Path) -> tuple[list[dict[str, Any]], Pipeline]:
    loaded = load_recipe(recipe)
    pipe = Pipeline.from_plugins(**loaded.pipeline)
    with Progress(out) as progress:
        pipe.train(loaded, out, progress=progress)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], pipe


def stage(**options: Any) -> SparseStage:
    given = {"n": 1, "m": 4, "every": 1, "ramp": 0.5, "hold": 0.25, "decay": 0.1, **options}
    return SparseStage(module_rates={"language_model": 1e-3}, roles=(), **given)


def test_survivors_fall_over_the_ramp_and_masks_stay_at_the_end() -> None:
    one = stage()
    one.steps = 12
    assert [one.survivors(step) for step in range(8)] == [4, 4, 3, 3, 2, 2, 1, 1]  # 1 + ⌈3 · (1 - step / 6)⌉
    assert one.settled == 9
    short = stage(ramp=0.0, hold=0.01)
    short.steps = 5
    assert (short.survivors(0), short.settled) == (1, 4)


def test_masks_change_when_due_and_never_after_they_have_settled() -> None:
    model = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]).model
    one = stage(every=3, ramp=0.25)
    one.steps = 12
    one.put_in(model)
    first = sparse_layers(model)[0]
    kept, changed = [], []
    for step in range(12):
        before = first.mask.clone()
        one.before_step(model, step)
        changed.append(not torch.equal(before, first.mask))
        kept.append(int(first.mask.sum()) * 4 // first.mask.numel())
        with torch.no_grad():
            first.weight.copy_(torch.randn(first.weight.shape, generator=torch.Generator().manual_seed(step)))
    # every third step, and at the ninth, from which a quarter is left; at step 0 all of every four stay
    assert [step for step in range(12) if changed[step]] == [3, 6, 9]
    assert kept == [4, 4, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def test_the_gradient_is_that_of_the_masked_weights_plus_the_pull_on_the_pruned_ones() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 3), torch.randn(5, 8)
    mask = keep_mask(layer.weight.detach().abs(), 2, 4)
    masked = (layer.weight * mask).detach().requires_grad_()
    linear(x, masked, layer.bias).square().mean().backward()
    assert masked.grad is not None
    wanted = masked.grad + 0.1 * layer.weight.detach() * ~mask  # SR-STE's update
    layer.__class__ = SparseLinear
    layer.register_buffer("mask", mask)
    (layer(x).square().mean() + 0.1 * pull(layer.weight, mask)).backward()
    torch.testing.assert_close(layer.weight.grad, wanted)
    weight = layer.weight.detach()
    assert float(pull(weight, mask)) == pytest.approx(float((weight * ~mask).square().sum()) / 2)


@pytest.mark.parametrize(("n", "m", "forms"), [(1, 4, ("nm14_w4", "nm14_w2")), (2, 8, ("nm28_w4",)), (2, 4, ())])
def test_a_trained_model_has_the_pattern_and_formats_pack_that_very_mask(
    tmp_path: Path, n: int, m: int, forms: tuple[str, ...]
) -> None:
    metrics, pipe = trained(write_run(tmp_path, options=f", n = {n}, m = {m}"), tmp_path / "out")
    names = [f"{name}.weight" for name in matrices(pipe.model, m)]
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert len(names) == 14
    for name in names:
        alive = (saved[name].reshape(len(saved[name]), -1, m) != 0).sum(-1)
        assert bool((alive == n).all())
    others = [k for k, t in saved.items() if t.ndim == 2 and k.startswith("language_model.") and k not in names]
    assert others
    assert not any(exact(saved[name], n, m) for name in others)
    assert metrics[0]["sparsity"] == 0.0
    assert metrics[-1]["sparsity"] == pytest.approx(1 - n / m)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    for form in forms:
        recipe = default_recipe(pipe.model, form, head="w8")
        artefact = pack_model(pipe.model, recipe, tmp_path / f"{form}.andes", plan=pipe.plan)
        for name in names:
            mask, kind = saved[name].numpy() != 0, find(form)
            packed = artefact.array(name) != 0
            assert not packed[~mask].any()  # no other survivor was chosen
            if kind.name == "nm14_w2":  # whose grid has no zero
                assert np.array_equal(packed, mask)
            else:  # a survivor may be rounded to zero, if it is below half a step of its group
                assert packed[mask].mean() > 0.8
                assert np.array_equal(kind.quantise(saved[name].numpy()).values != 0, packed)


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


def test_a_run_killed_in_the_middle_goes_on_to_the_bit(tmp_path: Path) -> None:
    # a state between two changes of the masks, so that they must come from it
    recipe = write_run(tmp_path, options=f', ramp = 0.5, teacher = "{TINY}"')
    recipe.write_text(recipe.read_text().replace("every = 2", "every = 4"))
    metrics, whole = trained(recipe, tmp_path / "whole")
    with started(TRAIN, [recipe, tmp_path / "cut"], tmp_path / "told") as child:
        deadline = time.monotonic() + 120
        while not states(tmp_path / "cut") and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, (tmp_path / "told.err").read_text()
    held = json.loads((states(tmp_path / "cut")[0] / "index.json").read_text())
    assert sum(name.startswith("buffer.") and name.endswith(".mask") for name in held) == 14
    resumed, again = trained(recipe, tmp_path / "cut")
    assert [(m["loss"], m["kl"], m["sparsity"]) for m in resumed] == [
        (m["loss"], m["kl"], m["sparsity"]) for m in metrics
    ]
    found = again.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.model.state_dict().items())


def test_with_a_teacher_it_learns_what_that_says(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, options=f', teacher = "{TINY}", ce = 0.0', stage="steps = 24")
    metrics, pipe = trained(recipe, tmp_path / "out")
    assert metrics[-1]["kl"] < 0.8 * metrics[0]["kl"]
    assert all(exact(module.weight, 1, 4) for _, module in matrices(pipe.model, 4).values())
    other = write_run(tmp_path / "b", options=', teacher = "nowhere"')
    with pytest.raises(TrainingError, match="cannot be opened"):
        outlook(load_recipe(other), Pipeline.from_plugins(**load_recipe(other).pipeline))


def test_recomputed_activations_and_an_average_keep_the_pattern(tmp_path: Path) -> None:
    plain, first = trained(write_run(tmp_path / "a"), tmp_path / "a" / "out")
    more = "steps = 8\nrecompute = true\nema = 0.5"
    other, second = trained(write_run(tmp_path / "b", stage=more), tmp_path / "b" / "out")
    assert [m["loss"] for m in other] == [m["loss"] for m in plain]
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    one, two = first.model.state_dict()[name], second.model.state_dict()[name]
    assert torch.equal(one != 0, two != 0)
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("given", "who"),
    [
        ("steps = 8\nlora = { rank = 2 }", "lora"),
        ("epochs = 2", "epochs"),
        ('steps = 8\nvalidation = [{ path = "data.jsonl" }]\npatience = 2', "patience"),
        ('steps = 8\nema = 0.5\nema_export = "beside"', "ema_export"),
    ],
)
def test_what_would_spoil_the_pattern_is_refused(tmp_path: Path, given: str, who: str) -> None:
    if who == "lora":
        pytest.importorskip("peft", reason="adapters are peft's")
    with pytest.raises(TrainingError, match="cannot be combined with sparse training") as caught:
        trained(write_run(tmp_path, stage=given), tmp_path / "out")
    assert caught.value.who == who
    assert not states(tmp_path / "out")


def test_matrices_that_cannot_have_a_mask_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = load_recipe(write_run(tmp_path, options=", m = 5"))
    with pytest.raises(ConfigError, match="no multiple of 5"):
        outlook(recipe, Pipeline.from_plugins(**recipe.pipeline))
    pipe = Pipeline.from_plugins(**recipe.pipeline)
    pipe.model.language_model.model.layers[0].mlp.up_proj = SparseLinear(48, 96, bias=False)
    with pytest.raises(ConfigError, match="no plain linear layer"):
        stage().put_in(pipe.model)


def launched(recipe: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Two processes, as a user starts them."""
    script = recipe.parent / "train.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [*command, str(recipe), str(out)], env=environment, capture_output=True, text=True, timeout=240
    )


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    recipe = write_run(tmp_path, options=f', teacher = "{TINY}"')
    alone, pipe = trained(recipe, tmp_path / "alone")
    done = launched(recipe, tmp_path / "both")
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads(line) for line in (tmp_path / "both" / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(alone, both, strict=True):  # gradients are added up in another order
        for name in ("loss", "kl", "ce", "agreement"):
            assert two[name] == pytest.approx(one[name], abs=1e-4)
        assert two["sparsity"] == pytest.approx(one["sparsity"])
    saved = load_file(tmp_path / "both" / "model" / "model.safetensors")
    assert all(exact(saved[f"{name}.weight"], 1, 4) for name in matrices(pipe.model, 4))


def test_a_model_divided_among_processes_is_refused() -> None:
    model = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]).model
    one = stage()
    one.steps = 4
    one.put_in(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        layer = sparse_layers(model)[-1]
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), init_device_mesh("cpu", (1,))))
        with pytest.raises(TrainingError, match="masks of a divided model cannot be chosen"):
            one.before_step(model, 0)
    finally:
        torch.distributed.destroy_process_group()
