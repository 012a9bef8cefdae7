"""Rotations: the float model stays what it was, and what stood out does so no longer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_qat.rotation import orthogonal, rotate
from andes_training.loop import train
from andes_training.recipe import Recipe

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import ConfigError
from andes_sdk.testing.material import conversation

OWN_HEAD: dict[str, Any] = {"qwen3": {"preset": "tiny", "config": {"tie_word_embeddings": False}}}


def pipeline(qwen: dict[str, Any], **options: Any) -> Any:
    return Pipeline.from_plugins(
        [{"aimv2": {"preset": "tiny"}}, "mlp", qwen, {"qat": options}], backend="torch", seed=5
    )


def logits(pipe: Any) -> torch.Tensor:
    return pipe.session().prefill(pipe.prepare(conversation()))  # type: ignore[no-any-return]


def norms(pipe: Any) -> list[torch.Tensor]:
    model = pipe.model.language_model.model
    found = [getattr(one, n).weight for one in model.layers for n in ("input_layernorm", "post_attention_layernorm")]
    return [*found, model.norm.weight]


@pytest.mark.parametrize("size", [1, 3, 64, 96, 576])
def test_the_matrix_is_orthogonal_and_flat_where_it_can_be(size: int) -> None:
    made = orthogonal(size)
    assert torch.allclose(made.T @ made, torch.eye(size, dtype=torch.float64), atol=1e-12)
    if size == 64:
        assert torch.allclose(made.abs(), torch.full_like(made, 1 / 8))


@pytest.mark.parametrize("kind", ["heads", "all"])
def test_logits_of_words_and_pictures_stay(kind: str) -> None:
    pipe = pipeline(OWN_HEAD)
    with torch.no_grad():
        for number, norm in enumerate(norms(pipe)):  # weights of norms that say something
            norm.copy_(1 + 0.5 * torch.randn(norm.shape, generator=torch.Generator().manual_seed(number)))
    before, old = logits(pipe), pipe.model.language_model.model.layers[1].self_attn.v_proj.weight.clone()
    assert rotate(pipe.model, kind) < 1e-5
    assert float((logits(pipe) - before).abs().max() / before.abs().max()) < 1e-5
    assert not torch.allclose(pipe.model.language_model.model.layers[1].self_attn.v_proj.weight, old)
    assert all(bool((norm == 1).all()) for norm in norms(pipe)) == (kind == "all")


def test_columns_that_stand_out_are_spread_so_that_rounding_loses_less() -> None:
    lost = {}
    for kind in ("", "all"):
        pipe = pipeline(OWN_HEAD, body="w4_g128", rotate=kind)
        with torch.no_grad():
            model = pipe.model.language_model.model
            for layer in model.layers:
                for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
                    module.weight[:, 5] *= 40
        lost[kind] = pipe.compress("qat").report["relative_error"]
    assert lost["all"] < 0.8 * lost[""]


def test_a_head_that_is_the_embedding_is_refused_and_nothing_changes() -> None:
    pipe = pipeline({"qwen3": {"preset": "tiny"}})
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"(?s)its head.*rotate = 'heads'"):
        rotate(pipe.model, "all")
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.model.state_dict().items())
    assert rotate(pipe.model, "heads") < 1e-5


def test_a_model_built_otherwise_is_refused_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(OWN_HEAD)
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    norm = pipe.model.language_model.model.layers[0].input_layernorm
    own = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: own(x).roll(1, -1))  # which no rotation of the rows commutes with
    with pytest.raises(ConfigError, match="built otherwise"):
        rotate(pipe.model, "all")
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.model.state_dict().items())


def test_the_stage_trains_the_rotated_model_and_packs_its_codes(tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(line))
    recipe = {
        "name": "x", "stages": [{"stage": "qat", "steps": 2, "data": [{"path": str(tmp_path / "data.jsonl")}]}]
    }  # fmt: skip
    pipe = pipeline(OWN_HEAD, body="w8", rotate="all", rate=1e-9, projector_rate=0.0)
    before = logits(pipe)
    train(pipe, structure(Recipe, recipe, "recipe"), tmp_path / "run")
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "model", plugins=["qat"])
    made = pipe.compress("qat", codes=str(tmp_path / "run" / "qat"))
    assert made.report["source"] == "trained"
    assert all(bool((norm == 1).all()) for norm in norms(pipe))  # not a second time, and not lost
    assert float((logits(pipe) - before).abs().max() / before.abs().max()) < 0.05
