"""Damaged adapter folders: an error of ours, or the matrices and the scale that the files say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, AssemblyError
from andes_sdk.testing.damage import CASES, altered, catalogue, damaged

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
LAYERS = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_rslora": False, "rank_pattern": {"down_proj": 3},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 8}, "bias": "none", "init_lora_weights": True, "lora_dropout": 0.1,
    "target_modules": ["q_proj", "down_proj"], "task_type": None, "inference_mode": True, "use_dora": False,
}  # fmt: skip
SCALES = {LAYERS[0]: 8 / 2, LAYERS[1]: 6 / 3}
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U16"]


@pytest.fixture(scope="module", autouse=True)
def listed_once():
    with catalogue():
        yield


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_plugins(TINY, seed=1)


@pytest.fixture(scope="module")
def folder(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, tensors = tmp_path_factory.mktemp("adapter"), {}
    torch.manual_seed(0)
    for layer, rank in zip(LAYERS, (2, 3), strict=True):
        module = pipe.model.language_model.get_submodule(layer)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(rank, module.in_features)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(module.out_features, rank)
    save_file(tensors, made / "adapter_model.safetensors")
    (made / "adapter_config.json").write_text(json.dumps(CONFIG))
    return made


@pytest.fixture(scope="module")
def raw(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def added(pipe: Pipeline, folder: Path) -> Any:
    """The adapter as the model has it, or None where it was refused."""
    try:
        pipe.add_adapter("x", folder)
    except (AndesError, AssemblyError):
        assert "x" not in pipe.compiled.adapters
        return None
    found = pipe.compiled.adapters["x"]
    pipe.remove_adapter("x")
    return found


def assert_holds(found: Any, folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(found.layers)
    for name, low in found.layers.items():
        ends = [key for key in tensors if f"{name}.lora_" in key]
        a, b = (tensors[next(key for key in ends if f"lora_{part}" in key)].float() for part in "AB")
        assert torch.equal(low.a, a)
        assert torch.equal(low.b, b)
        assert math.isfinite(low.scale)


def written(folder: Path, raw: bytes, config: bytes = json.dumps(CONFIG).encode()) -> None:
    (folder / "adapter_model.safetensors").unlink(missing_ok=True)  # what was read from it may still be mapped
    (folder / "adapter_model.safetensors").write_bytes(raw)
    (folder / "adapter_config.json").write_bytes(config)


def test_the_adapter_of_these_tests_is_right(pipe, folder):
    found = added(pipe, folder)
    assert_holds(found, folder)
    assert {name: low.scale for name, low in found.layers.items()} == SCALES


@CASES
@given(data=st.data())
def test_fuzz_bytes_of_adapters(pipe, folder, raw, data):
    end = 8 + int.from_bytes(raw[:8], "little")
    written(folder, data.draw(damaged(raw, data.draw(st.sampled_from([None, end])))))
    if found := added(pipe, folder):
        assert_holds(found, folder)
        assert {name: low.scale for name, low in found.layers.items()}.items() <= SCALES.items()


@CASES
@given(data=st.data())
def test_fuzz_headers_of_adapters(pipe, folder, raw, data):
    """A header that is whole, and says something else; types whose sizes fit too."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if data.draw(st.booleans()):
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        entry["dtype"], size = data.draw(st.sampled_from(TYPES)), math.prod(entry["shape"])
        per = {"64": 1, "32": 2, "16": 4}.get(entry["dtype"][-2:], 8)
        entry["shape"] = [size * per // 2 // 8, 8] if data.draw(st.booleans()) else entry["shape"]
    else:
        header = data.draw(altered(header))
    body = json.dumps(header).encode()
    written(folder, len(body).to_bytes(8, "little") + body + raw[end:])
    if found := added(pipe, folder):
        assert_holds(found, folder)


@CASES
@given(config=altered(CONFIG))
def test_fuzz_configurations_of_adapters(pipe, folder, raw, config):
    written(folder, raw, json.dumps(config).encode())
    if found := added(pipe, folder):
        assert_holds(found, folder)
        for name, low in found.layers.items():
            ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
            rank = next((v for key, v in ranks.items() if name.endswith(key)), config["r"])
            alpha = next((v for key, v in alphas.items() if name.endswith(key)), config["lora_alpha"])
            assert low.scale == alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


@CASES
@given(config=damaged(json.dumps(CONFIG).encode()))
def test_fuzz_bytes_of_configurations_of_adapters(pipe, folder, raw, config):
    written(folder, raw, config)
    if found := added(pipe, folder):
        assert_holds(found, folder)
