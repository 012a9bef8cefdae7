"""What a stage may do beside its loss: act between steps, change the model, learn ranges in buffers, learn scales."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from andes_training.outlook import outlook
from andes_training.recipe import Recipe, load_recipe
from andes_training.state import states
from andes_training.step import decayed, make_optimizer
from andes_training.testing.reference import ReferenceStage
from andes_training.testing.stages import Stage
from attrs import define, field, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from andes_sdk import Pipeline, hookimpl, types
from andes_sdk.testing import reference, registry, run_checks
from andes_sdk.testing.subject import Subject

RANGE_DECAY = 0.9


class Ranged(nn.Module):
    """A layer behind a clamp whose range follows what it sees, and a scale that is learnt."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.input_scale = nn.Parameter(torch.ones(1, inner.in_features))
        self.register_buffer("largest", torch.tensor(1.0))
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.largest.lerp_(x.abs().max(), 1 - RANGE_DECAY)
        return self.inner(x.clamp(-self.largest, self.largest) * self.input_scale)


@define(eq=False)
class Quantised:
    """A stage that puts `Ranged` around the projector's first layer, and narrows its range step by step."""

    rate: float
    seen: list[int]
    name: str = "quantised"
    folder: str = "ranges/quantised"
    factor: float = field(default=1.0, init=False)

    def put_in(self, model) -> None:
        model.mlp.linear = Ranged(model.mlp.linear)

    def rates(self, model):
        return {"mlp": self.rate}

    def before_step(self, model, step: int) -> None:
        self.seen.append(step)
        self.factor = 1.0 / (1 + step)

    def loss(self, model, batch):
        value, figures = Stage(self.rate).loss(model, batch)
        return value * self.factor, figures

    def save(self, model, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        layer = model.mlp.linear
        save_file({"largest": layer.largest, "scale": layer.input_scale.detach()}, folder / "ranges.safetensors")

    def take_out(self, model) -> None:
        model.mlp.linear = model.mlp.linear.inner


@frozen(eq=False, kw_only=True)
class Plugin(ReferenceStage):
    seen: list = field(factory=list)

    @hookimpl
    def andes_training_stages(self):
        return [Quantised(self.rate, self.seen)]


def pipeline_with(plugin: Plugin) -> Pipeline:
    return Pipeline.from_plugins([*(made() for made in reference.REFERENCES.values()), plugin])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    lines = []
    for i in range(6):
        picture = {"type": "image_url", "image_url": {"url": "red.png"}}
        user = {"role": "user", "content": [picture, {"type": "text", "text": f"{i}?"}]}
        lines.append(json.dumps({"messages": [user, {"role": "assistant", "content": "yes " * (i + 1)}]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "recipe.toml").write_text(
        'name = "contract"\nthreads = 1\npipeline = {}\n[[stages]]\nstage = "quantised"\nsteps = 6\n'
        'checkpoint_every = 3\nmax_tokens = 200\ndata = [{ path = "data.jsonl" }]\n'
    )
    return load_recipe(tmp_path / "recipe.toml")


def test_a_stage_is_told_of_each_step_and_of_the_next_one_after_a_restart(recipe: Recipe, tmp_path: Path) -> None:
    plugin = Plugin(rate=1e-2)
    pipeline_with(plugin).train(recipe, tmp_path / "out")
    assert plugin.seen == [0, 1, 2, 3, 4, 5]
    shutil.rmtree(states(tmp_path / "out")[-1])
    plugin.seen.clear()
    pipeline_with(plugin).train(recipe, tmp_path / "out")
    assert plugin.seen == [3, 4, 5]


def test_ranges_in_buffers_and_learnt_scales_go_on_to_the_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole, again = pipeline_with(Plugin(rate=1e-2)), pipeline_with(Plugin(rate=1e-2))
    whole.train(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(states(tmp_path / "cut")[-1])
    shutil.rmtree(tmp_path / "cut" / "ranges")
    again.train(recipe, tmp_path / "cut")
    one, two = (load_file(tmp_path / n / "ranges" / "quantised" / "ranges.safetensors") for n in ("whole", "cut"))
    assert one["largest"] != 1.0
    assert not torch.equal(one["scale"], torch.ones_like(one["scale"]))
    assert torch.equal(one["largest"], two["largest"])
    assert torch.equal(one["scale"], two["scale"])
    assert all(torch.equal(w, again.model.state_dict()[n]) for n, w in whole.model.state_dict().items())
    held = json.loads((states(tmp_path / "whole")[-1] / "index.json").read_text())
    assert [n for n in held if n.startswith("buffer.") and "mlp" in n] == ["buffer.mlp.linear.largest"]


def test_a_stage_that_changes_the_model_gives_back_its_own_modules(recipe: Recipe, tmp_path: Path) -> None:
    stage = Quantised(1e-2, [])
    assert isinstance(stage, types.ModelChange)
    assert isinstance(stage, types.SteppingStage)
    assert not isinstance(Stage(1e-2), types.ModelChange | types.SteppingStage)
    pipeline = pipeline_with(Plugin(rate=1e-2))
    names = list(pipeline.model.state_dict())
    facts = outlook(recipe, pipeline)["stages"][0]
    assert facts["trainable"]["mlp"] == sum(p.numel() for p in pipeline.model.mlp.parameters()) + (
        pipeline.model.mlp.linear.in_features
    )
    pipeline.train(recipe, tmp_path / "out")
    assert list(pipeline.model.state_dict()) == names


def test_learnt_scales_vectors_and_marked_parameters_do_not_decay() -> None:
    model = nn.Module()
    for name in ("weight", "scale", "scales", "input_scale", "scaled", "marked"):
        model.register_parameter(name, nn.Parameter(torch.ones(2, 2)))
    model.bias = nn.Parameter(torch.ones(2))
    model.scale_of = nn.Linear(2, 2)
    model.marked.no_decay = True
    assert decayed(model) == {"weight", "scaled", "scale_of.weight"}
    optimizer = make_optimizer(model, {n: 0.1 for n, _ in model.named_parameters()}, 0.5, decayed(model))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {n for n, p in model.named_parameters() if decays[id(p)] == 0.5} == decayed(model)


def test_without_the_checks_of_stages_the_kit_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.counts()  # imports all checks: done later, they would be registered in what is put in below
    monkeypatch.setattr(registry, "extensions", lambda group: [])
    monkeypatch.setattr(registry, "_CHECKS", {k: c for k, c in registry._CHECKS.items() if c.kind != "training_stages"})
    (result,) = run_checks(ReferenceStage, kinds=["training_stages"])
    assert (result.status, result.id) == ("failed", "training_stages: its checks are installed")
    assert "pip install andes-training" in result.reason
    assert "training_stages" in Subject(ReferenceStage).kinds
