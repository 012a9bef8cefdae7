"""Adapters from strangers: their files are plain, their patterns are names, how they are nested does not matter."""

import json
import os
import re
import threading

import pytest
import torch
from andes_adapters.reading import read_adapter
from safetensors.torch import save_file

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, ConfigError

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_plugins(TINY, seed=7)


def within(seconds, function):
    """What a function raises, if it comes back in time."""
    found = []

    def run():
        try:
            function()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return found[0]


def replaced(path, kind):
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)


def adapter(folder, **changes):
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 48), f"{name}.lora_B.weight": torch.ones(64, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="no devices and pipes in folders")
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_s5_devices_and_pipes_in_an_adapter_are_refused(pipeline, tmp_path, name, kind):
    replaced(adapter(tmp_path) / name, kind)
    error = within(20, lambda: read_adapter("a", tmp_path, pipeline.model.language_model))
    assert isinstance(error, CheckpointError)
    assert "no regular file" in error.why


NAMES = ["([a-z0-9_.]+)+$x", "[", "(", "a|b", "q_proj$", ".*", "q_proj.", "", "a" * 10**6 + "!", "(?i)q"]
NUMBERS = [float("inf"), float("nan"), 10**400, -1, 0, True, [4], {"a": 1}, "4", None, 1 << 40]


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("given", [*({n: 2} for n in NAMES), *({"q_proj": n} for n in NUMBERS), [1], "q_proj", 3])
def test_s7_patterns_of_an_adapter_are_names_and_their_numbers_are_checked(pipeline, tmp_path, field, given):
    adapter(tmp_path, **{field: given})
    error = within(20, lambda: read_adapter("a", tmp_path, pipeline.model.language_model))
    assert isinstance(error, ConfigError), repr(error)
    assert field in error.why
    assert len(str(error)) < 2000


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 10**400, True, 0, [1], None])
@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_s7_rank_and_alpha_are_checked(pipeline, tmp_path, field, number):
    adapter(tmp_path, **{field: number})
    with pytest.raises(ConfigError, match=rf"{field} is .*above 0"):
        read_adapter("a", tmp_path, pipeline.model.language_model)


WHOLE = "model.layers.0.self_attn.q_proj"
ENDS = ["q_proj", "layers.0.self_attn.q_proj", "0.self_attn.q_proj", WHOLE, f"^{WHOLE}", "proj", "^q_proj", "0.q_proj"]


@pytest.mark.parametrize("key", ENDS)
def test_s7_names_mean_what_peft_means_by_them(pipeline, tmp_path, key):
    adapter(tmp_path, alpha_pattern={key: 10})
    found = read_adapter("a", tmp_path, pipeline.model.language_model).layers[WHOLE].scale
    assert found == (5 if re.match(rf"(.*\.)?({key})$", WHOLE) else 2)


def test_s7_many_patterns_take_linear_time(pipeline, tmp_path):
    adapter(tmp_path, alpha_pattern={f"x{n}.q_proj": 2 for n in range(200_000)})
    assert read_adapter("a", tmp_path, pipeline.model.language_model).layers


def test_s8_deep_adapters_are_refused(pipeline, tmp_path):
    adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type":' * 10**5 + "1" + "}" * 10**5)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter("a", tmp_path, pipeline.model.language_model)
