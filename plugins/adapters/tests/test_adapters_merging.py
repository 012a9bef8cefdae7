"""Adapters added to the weights of their base, as peft adds them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from andes_adapters.cli import app
from andes_adapters.merging import merge_adapter
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.numbers import weights_of

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[Path, Path]:
    """A base in bfloat16, and an adapter of its attention and projector that names it."""
    pytest.importorskip("peft", reason="peft merges")
    pipeline = Pipeline.from_plugins(MODEL, seed=3)
    pipeline.save_pretrained(tmp_path / "base", dtype="bfloat16")
    random, tensors, targets = torch.Generator().manual_seed(0), {}, []
    for name, layer in pipeline.model.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith(("language_model.model.layers.", "mlp.")):
            if name.startswith("language") and ".self_attn." not in name:
                continue
            targets.append(name)
            for key, shape in (("A", (4, layer.in_features)), ("B", (layer.out_features, 4))):
                tensors[f"base_model.model.{name}.lora_{key}.weight"] = torch.randn(shape, generator=random) * 0.1
    assert {name.partition(".")[0] for name in targets} == {"language_model", "mlp"}
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"andes_base": weights_of(pipeline.model)})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "base", folder


def test_the_command_merges_as_peft_does_and_checks_the_base(adapted: tuple[Path, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    base, adapter = adapted
    done = CliRunner().invoke(app, ["merge", str(base), str(adapter), str(tmp_path / "m"), "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    merged = load_file(tmp_path / "m" / "model.safetensors")
    plain = Pipeline.from_pretrained(base, dtype="float32").model
    wanted = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().state_dict()
    assert all(torch.equal(merged[k], wanted[k]) for k in merged)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], load_file(base / "model.safetensors")[name].float())
    Pipeline.from_plugins(MODEL, seed=9).save_pretrained(tmp_path / "other")
    command = ["merge", str(tmp_path / "other"), str(adapter), str(tmp_path / "n")]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1
    assert "another base" in refused.output
    assert CliRunner().invoke(app, [*command, "--any-base"]).exit_code == 0


def test_an_adapter_that_names_no_base_is_merged_and_told(adapted: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = adapted
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")
    done = CliRunner().invoke(app, ["merge", str(base), str(adapter), str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    assert "does not say what it was trained on" in done.output


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")  # peft only warns of them
def test_what_cannot_be_merged_is_refused(adapted: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = adapted
    model = Pipeline.from_pretrained(base, dtype="float32").model
    with pytest.raises(CheckpointError, match="cannot be read"):
        merge_adapter(model, tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="does not fit this model") as caught:
        merge_adapter(model, adapter)
    assert "it lacks" in caught.value.why
    model.numbers = "a" * 64
    with pytest.raises(ConfigError, match="a compressed model cannot take an adapter in"):
        merge_adapter(model, adapter)


def test_merging_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="merging needs peft") as caught:
        merge_adapter(Pipeline.from_plugins(MODEL).model, tmp_path)
    assert caught.value.fix == "pip install 'andes-adapters[merge]'"
