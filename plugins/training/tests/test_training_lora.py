"""LoRA as an option of any stage: peft's layers and peft's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_training.lora import Lora, targets_of
from andes_training.recipe import LoraRecipe, load_recipe
from andes_training.state import states
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.errors import TrainingError
from andes_sdk.numbers import weights_of

pytest.importorskip("peft", reason="LoRA is made by peft")

PLUGINS = '[{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes " * i}]})
        for i in range(1, 7)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    path = tmp_path / "recipe.toml"
    path.write_text(f"""
name = "lora"
threads = 1
[pipeline]
plugins = {PLUGINS}
[[stages]]
stage = "sft"
steps = 6
max_tokens = 100
checkpoint_every = 3
data = [{{ path = "data.jsonl" }}]
[stages.lora]
rank = 4
alpha = 8
dropout = 0.1
rate = 1e-2
""")
    return path


def train(recipe: Path, out: Path, *overrides: str) -> Pipeline:
    loaded = load_recipe(recipe, overrides)
    pipeline = Pipeline.from_plugins(**loaded.pipeline)
    pipeline.train(loaded, out)
    return pipeline


@torch.no_grad()
def answer(pipeline: Pipeline) -> torch.Tensor:
    from andes_sdk.testing.material import answer_to_everything

    return answer_to_everything(pipeline.model, pipeline.prepare([{"role": "user", "content": "2?"}]))


def test_only_the_adapter_learns_and_peft_reads_what_was_saved(recipe: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    loaded = load_recipe(recipe)
    before = Pipeline.from_plugins(**loaded.pipeline)
    base = {k: v.clone() for k, v in before.model.state_dict().items()}
    after = train(recipe, tmp_path / "out")
    # without `merge` the pipeline's own weights are as they were
    assert all(torch.equal(base[k], v) for k, v in after.model.state_dict().items())
    folder = tmp_path / "out" / "adapters" / "sft"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = load_file(folder / "adapter_model.safetensors")
    layers, matrices = before.model.text.layers, 7  # q, k, v, o, gate, up, down
    assert len(tensors) == 2 * matrices * layers
    assert all(bool(t.abs().max() > 0) for t in tensors.values())  # B began at zero

    merged = train(recipe, tmp_path / "merged", "stages.0.lora.merge=true")
    read = PeftModel.from_pretrained(before.model, str(folder))
    assert "unexpected" not in str(read)
    expected = answer(before)
    assert not torch.allclose(expected, answer(after), atol=1e-3)
    # y + s·B(A x) against (W + s·B A) x in float32
    assert torch.allclose(answer(merged), expected, atol=1e-4)
    assert list(merged.model.state_dict()) == list(base)


def test_an_adapter_that_is_merged_and_subtracted_leaves_the_weights(recipe: Path) -> None:
    pipeline = Pipeline.from_plugins(**load_recipe(recipe).pipeline)
    base = {k: v.clone() for k, v in pipeline.model.state_dict().items()}
    adapter = Lora(LoraRecipe(rank=4, targets=["attention", "mlp", "vision", "projector"]), "adapters/x")
    adapter.put_in(pipeline.model)
    with torch.no_grad():
        for name, parameter in pipeline.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    adapter.tuner.merge_adapter()
    adapter.tuner.unmerge_adapter()
    adapter.take_out(pipeline.model)
    for name, tensor in pipeline.model.state_dict().items():
        assert torch.allclose(tensor, base[name], atol=1e-5), name  # float32: w + d - d


def test_kinds_of_module_are_the_language_models_two_the_encoder_and_the_projector(recipe: Path) -> None:
    model = Pipeline.from_plugins(**load_recipe(recipe).pipeline).model
    layers = model.text.layers
    attention, mlp = targets_of(model, ["attention"]), targets_of(model, ["mlp"])
    assert len(attention) == 4 * layers
    assert len(mlp) == 3 * layers
    assert targets_of(model, ["projector"]) == ("mlp.0", "mlp.2")
    vision = targets_of(model, ["vision"])
    assert vision
    assert all(name.startswith("vision_encoder.") for name in vision)
    assert not any("lm_head" in name for name in (*attention, *mlp, *vision))
    model.mlp = torch.nn.Identity()
    with pytest.raises(TrainingError, match="no matrix of the kinds"):
        Lora(LoraRecipe(targets=["projector"]), "x").put_in(model)


def test_layers_as_wide_as_its_vocabulary_get_adapters() -> None:
    tiny: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    config = {"intermediate_size": Pipeline.from_plugins(tiny).model.text.vocab_size}
    model = Pipeline.from_plugins([*tiny[:2], {"qwen3": {"preset": "tiny", "config": config}}]).model
    assert len(targets_of(model, ["mlp"])) == 3 * model.text.layers


def test_what_the_recipes_rates_name_learns_beside_the_adapter(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe)
    before = Pipeline.from_plugins(**loaded.pipeline).model.state_dict()
    rates = '{"language_model.model.norm" = 1e-2}'
    after = train(recipe, tmp_path / "out", f"stages.0.rates={rates}").model.state_dict()
    assert [k for k in after if not torch.equal(after[k], before[k])] == ["language_model.model.norm.weight"]


def test_a_run_with_dropout_goes_on_to_the_bit(recipe: Path, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(states(tmp_path / "cut")[-1])
    shutil.rmtree(tmp_path / "cut" / "adapters")
    train(recipe, tmp_path / "cut")
    one, two = (load_file(tmp_path / n / "adapters" / "sft" / "adapter_model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_an_adapter_of_a_compressed_model_names_its_numbers_and_one_of_a_float_model_its_weights(
    recipe: Path, tmp_path: Path
) -> None:
    made = load_recipe(recipe).stages[0].lora
    for numbers in ("a" * 64, ""):
        pipeline = Pipeline.from_plugins(**load_recipe(recipe).pipeline)
        pipeline.model.numbers = numbers
        lora = Lora(made, "adapter")
        lora.put_in(pipeline.model)
        lora.save(pipeline.model, tmp_path / "adapter")
        lora.take_out(pipeline.model)
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert config.get("andes_base", "") == numbers
        pipeline.add_adapter("mine", tmp_path / "adapter")
        assert pipeline.compiled.adapters["mine"].base == (numbers or weights_of(pipeline.model))


def test_an_adapter_does_not_take_the_place_of_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="no part of an adapter") as caught:
        Lora(LoraRecipe(), "adapters/sft").save(torch.nn.Linear(2, 2), tmp_path)  # type: ignore[arg-type]
    assert "notes.txt" in caught.value.why
    assert (tmp_path / "notes.txt").read_text() == "mine"
