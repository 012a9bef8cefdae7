"""Adapters of a pipeline: attached and removed by name, refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def pipeline() -> Any:
    return Pipeline.from_plugins(MODEL, seed=1)


def adapter(folder: Path, base: str) -> Path:
    """An adapter of one layer that names its base as training does: beside the tensors."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 48), f"{name}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"andes_base": base})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    return folder


def test_the_methods_are_those_of_every_pipeline(pipeline: Any) -> None:
    assert {"add_adapter", "remove_adapter"} <= set(dir(pipeline))


def test_other_weights_are_refused_unless_the_caller_says_so(pipeline: Any, tmp_path: Path) -> None:
    from andes_sdk.numbers import weights_of

    pipeline.add_adapter("own", adapter(tmp_path, weights_of(pipeline.model)))
    assert pipeline.compiled.adapters["own"].base == weights_of(pipeline.model)
    adapter(tmp_path, "weights:" + "0" * 64)
    with pytest.raises(ConfigError, match="belongs to another base") as caught:
        pipeline.add_adapter("other", tmp_path)
    assert "any_base=True" in caught.value.fix
    pipeline.add_adapter("other", tmp_path, any_base=True)
    assert pipeline.compiled.adapters["other"].base == ""


def test_a_backend_without_adapters_says_so(pipeline: Any, tmp_path: Path) -> None:
    pipeline.compiled = SimpleNamespace()
    for attempt in (lambda: pipeline.add_adapter("a", adapter(tmp_path, "")), lambda: pipeline.remove_adapter("a")):
        with pytest.raises(ConfigError, match="backend 'torch': takes no adapters"):
            attempt()


def test_an_adapter_that_names_no_base_is_told_of(pipeline: Any, tmp_path: Path, caplog: Any) -> None:
    pipeline.add_adapter("silent", adapter(tmp_path, ""))
    assert "adapter 'silent': its base was not checked: it does not say" in caplog.text
    caplog.clear()
    pipeline.add_adapter("asked", tmp_path, any_base=True)
    assert caplog.text == ""
