"""Block-wise training: the last layer sends on what is nearer to the float model's, and codes are what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_packing import Artefact
from andes_qat.layers import rounding_layers
from andes_qat.record import read_record
from andes_sparsity.calibration import Calibration, layer_module, output_of
from andes_training.loop import train
from andes_training.recipe import Recipe

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import ConfigError, TrainingError

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pipeline(**options: Any) -> Pipeline:
    return Pipeline.from_plugins([*MODEL, {"qat": options}], backend="torch", seed=3)


@pytest.fixture
def data(tmp_path: Path) -> str:
    words = ("alpha", "beta", "gamma", "delta")
    lines = [
        {"messages": [{"role": "user", "content": f"{w}?"}, {"role": "assistant", "content": f"{w} " * 9}]}
        for w in words
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "data.jsonl")


def sent_on(pipe: Pipeline, data: str) -> torch.Tensor:
    return Calibration.of(pipe.model, data, 4, 2048, "test").after(1)


@pytest.mark.parametrize("body", ["w4_g32", "ternary34_g128", "nm14_w4"])
def test_what_the_last_layer_sends_on_is_nearer_than_after_rounding(body: str, data: str, tmp_path: Path) -> None:
    wanted = sent_on(pipeline(), data)
    off = {}
    for how in ("qat", "blockwise"):
        pipe = pipeline(body=body, blockwise=30, data=data, block_rate=3e-3)
        made = pipe.compress(how)
        off[how] = float(((sent_on(pipe, data) - wanted).square().sum(-1) / wanted.square().sum(-1)).mean())
    assert off["blockwise"] < 0.8 * off["qat"]
    assert made.report["error"] == pytest.approx(off["blockwise"], rel=1e-3)
    for name, codes in made.codes.items():  # the codes are the weights, to the bit, packed too
        assert torch.equal(pipe.model.state_dict()[name], torch.from_numpy(codes.weights()))
    formats = recipe_for(pipe, made, "f16") | {n: f for n, f in recipe_for(pipe, made, None).items() if n in made.codes}
    write(pipe, made, tmp_path / "model.andes", formats)
    name = next(iter(made.codes))
    assert (Artefact.open(tmp_path / "model.andes").array(name) == made.codes[name].weights()).all()


def test_layers_are_computed_alone_as_in_the_whole_model(data: str) -> None:
    pipe = pipeline()
    read = Calibration.of(pipe.model, data, 4, 64, "test")
    assert len(read.packs) > 1
    seen: list[dict[int, torch.Tensor]] = []
    for batch in read.packs:
        entered: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            embeds = pipe.model.embed(batch.ids, {})
            pipe.model.hidden_states(embeds, batch.positions, batch.attend, lambda n, x, e=entered: e.update({n: x}))
        seen.append(entered)
    for layer in (0, 1):
        for call, entered in zip(read.calls(layer), seen, strict=True):
            assert torch.equal(call[0][0][0], entered[layer])
            with torch.no_grad():
                assert torch.equal(output_of(layer_module(pipe.model, layer), call)[0], entered[layer + 1])
    with pytest.raises(ValueError, match="layer 0 after layer 1"):
        read.calls(0)


def test_the_stage_begins_with_it_and_keeps_its_survivors(data: str, tmp_path: Path) -> None:
    recipe = {"name": "x", "stages": [{"stage": "qat", "steps": 2, "data": [{"path": data}]}]}
    pipe = pipeline(body="nm14_w4", blockwise=5, ramp=0.0, hold=0.5)
    shown: list[Any] = []
    train(pipe, structure(Recipe, recipe, "recipe"), tmp_path / "run", progress=SimpleNamespace(show=shown.append))
    told = next(event.values for event in shown if event.kind == "blockwise")
    assert told["packs"] == 5
    assert 0 < told["error"] < 1
    for one in read_record(tmp_path / "run" / "qat").codes.values():
        assert ((one.values.reshape(len(one.values), -1, 4) != 0).sum(2) <= 1).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_of_16_bits_is_trained_in_float32_and_keeps_its_type(dtype: str, data: str, tmp_path: Path) -> None:
    folder = pipeline().save_pretrained(tmp_path / "model", dtype=dtype)
    options = {"body": "ternary34_g128", "blockwise": 6, "data": data, "embedding": "w4_g32", "vision": "w8"}
    narrow, wide = (
        Pipeline.from_pretrained(folder, backend="torch", dtype=kind, plugins=[{"qat": options}])
        for kind in (dtype, "float32")
    )
    assert narrow.model.dtype == getattr(torch, dtype)
    made, wanted = narrow.compress("blockwise"), wide.compress("blockwise")
    assert {tensor.dtype for tensor in narrow.model.state_dict().values()} == {getattr(torch, dtype)}
    assert made.report["error"] == pytest.approx(wanted.report["error"], rel=1e-3)
    for name, codes in made.codes.items():
        own = torch.from_numpy(codes.weights()).to(getattr(torch, dtype))
        assert torch.equal(narrow.model.state_dict()[name], own)


def test_grids_outside_of_the_layers_keep_their_ramp(data: str, tmp_path: Path) -> None:
    kept: list[dict[str, float]] = []
    for steps in (0, 2):
        recipe = {"name": "x", "stages": [{"stage": "qat", "steps": 4, "data": [{"path": data}]}]}
        pipe = pipeline(body="nm14_w4", projector="nm14_w4", embedding="nm14_w4", blockwise=steps, ramp=0.5, hold=0.25)
        stage, shares = pipe.pick("training_stages", "qat"), dict[str, float]()
        loss = type(stage).loss

        def seen(self: Any, model: Any, batch: Any, loss: Any = loss, shares: dict[str, float] = shares) -> Any:
            for name, layer in rounding_layers(model).items():
                if layer.weight_mask is not None:
                    shares.setdefault(name.partition(".model.layers")[0], float(layer.weight_mask.float().mean()))
            return loss(self, model, batch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(stage), "loss", seen)
            train(pipe, structure(Recipe, recipe, "recipe"), tmp_path / f"run{steps}")
        kept.append(shares)
    without, with_ = kept
    assert set(without.values()) == {1.0}
    assert "mlp.0" in with_
    assert {n: s for n, s in with_.items() if n.startswith("mlp") or "embed" in n} == {
        n: s for n, s in without.items() if n.startswith("mlp") or "embed" in n
    }
    assert with_["language_model"] == 0.25  # chosen while layers learnt one by one


def test_an_average_that_would_begin_before_it_is_refused_and_data_is_told_once(data: str, tmp_path: Path) -> None:
    stage = {"stage": "qat", "steps": 2, "data": [{"path": data}]}
    pipe = pipeline(body="w8", blockwise=2)
    with pytest.raises(TrainingError, match=r"(?s)ema: cannot be combined with blockwise.*blockwise = 0"):
        train(pipe, structure(Recipe, {"name": "x", "stages": [{**stage, "ema": 0.9}]}, "recipe"), tmp_path / "ema")
    shown: list[Any] = []
    recipe = structure(Recipe, {"name": "x", "stages": [stage]}, "recipe")
    train(pipeline(body="w8", blockwise=2), recipe, tmp_path / "run", progress=SimpleNamespace(show=shown.append))
    assert [event.kind for event in shown].count("data") == 1


def test_without_data_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="blockwise: needs calibration data"):
        pipeline().compress("blockwise")
