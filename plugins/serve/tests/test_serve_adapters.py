"""Adapters at run time: a model of its own name, while other answers go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from andes_serve.door import Door
from safetensors.torch import save_file

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA adapter of one layer, as peft saves it."""
    name = "base_model.model.model.layers.0.self_attn"
    noise = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{part}.lora_{side}.weight": 9 * torch.randn(shape, generator=noise)
        for part, rows in (("q_proj", 64), ("v_proj", 32))
        for side, shape in (("A", (2, 48)), ("B", (rows, 2)))
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    return tmp_path


def test_an_adapter_comes_answers_and_goes(start, adapter):
    pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    text = "Tell me something long about circles and squares."
    base = pipe.generate(text, GenerationOptions(max_tokens=8)).text
    with start(pipe, door=Door(admin=("boss",))) as served:
        boss = {"Authorization": "Bearer boss"}
        assert served.http.post("/v1/adapters", json={"name": "x", "folder": "y"}).status_code == 401
        body = {"name": "team/bold", "folder": str(adapter)}
        got = served.http.post("/v1/adapters", json=body, headers=boss)
        assert (got.status_code, got.json()["id"]) == (201, "tiny:team/bold")
        assert [m["id"] for m in served.http.get("/v1/models").json()["data"]] == ["tiny", "tiny:team/bold"]
        own = pipe.generate(text, GenerationOptions(max_tokens=8, adapter="team/bold")).text
        assert own != base
        for _ in range(2):  # what one has read is not lent to the other
            assert served.ask(text)["choices"][0]["message"]["content"] == base
            assert served.ask(text, model="tiny:team/bold")["choices"][0]["message"]["content"] == own
        assert served.http.post("/v1/adapters", json=body, headers=boss).status_code == 400  # there is one
        assert served.http.delete("/v1/adapters/team/bold", headers=boss).json()["deleted"]
        assert served.ask(text, model="tiny:team/bold", status=404)["error"]["code"] == "model_not_found"
        assert served.http.delete("/v1/adapters/team/bold", headers=boss).status_code == 404
        assert served.ask(text)["choices"][0]["message"]["content"] == base
