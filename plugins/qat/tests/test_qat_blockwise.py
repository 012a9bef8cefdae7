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
from andes_qat.record import read_record
from andes_sparsity.calibration import Calibration, layer_module, output_of
from andes_training.loop import train
from andes_training.recipe import Recipe

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import ConfigError

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


def test_without_data_it_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="blockwise: needs calibration data"):
        pipeline().compress("blockwise")
