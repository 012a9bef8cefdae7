"""Rotations: the float model stays what it was, and what stood out does so no longer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_qat.layers import hold
from andes_qat.rotation import orthogonal, rotate
from andes_training.loop import train
from andes_training.outlook import outlook
from andes_training.recipe import Recipe
from torch import nn

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import ConfigError
from andes_sdk.numbers import numbers_of
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_16_bits_are_rotated_in_float32_and_rounded_at_the_end(dtype: str) -> None:
    pipe, kind = pipeline(OWN_HEAD), getattr(torch, dtype)
    model = pipe.model.to(kind)
    wide = pipeline(OWN_HEAD)
    wide.model.load_state_dict(model.state_dict())
    assert rotate(model, "all") < 1e-5
    rotate(wide.model, "all")
    for name, weight in wide.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.to(kind))


@pytest.mark.parametrize(
    ("put", "what"),
    [
        (lambda mlp: mlp.__setitem__(2, nn.Sequential(mlp[2], nn.GELU())), r"(?s)ends in GELU.*rotate = 'heads'"),
        (lambda mlp: mlp.__setitem__(2, nn.Identity()), "ends in Identity|cannot be rotated"),
        (lambda mlp: mlp.register_forward_hook(lambda *given: given[2].roll(1, -1)), "built otherwise"),
    ],
)
def test_a_projector_that_cannot_be_rotated_is_refused_and_nothing_changes(put: Any, what: str) -> None:
    pipe = pipeline(OWN_HEAD)
    put(pipe.model.mlp)
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    with pytest.raises(ConfigError, match=what):
        rotate(pipe.model, "all")
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.model.state_dict().items())


@pytest.mark.parametrize("error", [IndexError, TypeError, KeyboardInterrupt])
def test_whatever_happens_on_the_way_nothing_changes(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline(OWN_HEAD)
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}

    def fail(*_: Any) -> None:
        raise error("on the way")

    monkeypatch.setattr("andes_qat.rotation._write", fail)
    with pytest.raises(error if error is KeyboardInterrupt else ConfigError, match="on the way"):
        rotate(pipe.model, "all")
    assert all(torch.equal(before[name], tensor) for name, tensor in pipe.model.state_dict().items())


def recipe_of(folder: Path, *stages: str) -> Recipe:
    line = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    (folder / "data.jsonl").write_text(json.dumps(line))
    data = [{"path": str(folder / "data.jsonl")}]
    return structure(
        Recipe, {"name": "x", "stages": [{"stage": s, "steps": 2, "data": data} for s in stages]}, "recipe"
    )


def test_what_a_recipe_would_do_is_said_without_weights_to_rotate(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "qat")
    pipe, plain = (pipeline(OWN_HEAD, body="w8", rotate=kind) for kind in ("all", ""))
    assert outlook(recipe, pipe) == outlook(recipe, plain)
    with pytest.raises(ConfigError, match="its head"):  # what training would refuse
        outlook(recipe, pipeline({"qwen3": {"preset": "tiny"}}, body="w8", rotate="all"))


def test_a_second_stage_goes_on_from_the_rotated_codes_of_the_first(tmp_path: Path) -> None:
    def trained(*stages: str) -> Any:
        pipe = pipeline(OWN_HEAD, body="w8", rotate="all", rate=1e-12, projector_rate=0.0)
        train(pipe, recipe_of(tmp_path, *stages), tmp_path / str(len(stages)))
        return pipe

    once, twice = trained("qat"), trained("qat", "qat")
    assert numbers_of(twice.model) == numbers_of(once.model)
    other = pipeline(OWN_HEAD, body="w8")
    made, name = other.compress("qat").codes, "language_model.model.layers.0.self_attn.q_proj"
    hold(other.model.get_submodule(name), made[f"{name}.weight"], None)
    with pytest.raises(ConfigError, match="only plain layers"):  # codes of weights that were not rotated
        rotate(other.model, "all")


def test_the_stage_trains_the_rotated_model_and_packs_its_codes(tmp_path: Path) -> None:
    pipe = pipeline(OWN_HEAD, body="w8", rotate="all", rate=1e-9, projector_rate=0.0)
    before = logits(pipe)
    train(pipe, recipe_of(tmp_path, "qat"), tmp_path / "run")
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "model", plugins=["qat"])
    made = pipe.compress("qat", codes=str(tmp_path / "run" / "qat"))
    assert made.report["source"] == "trained"
    assert all(bool((norm == 1).all()) for norm in norms(pipe))  # not a second time, and not lost
    assert float((logits(pipe) - before).abs().max() / before.abs().max()) < 0.05
