"""Keys and values that are rounded in training are those that sessions of numba and of the reference hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_qat import kv
from andes_qat.record import FACTS, read_record
from andes_training.recipe import Recipe

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.testing.material import conversation, plain_inputs

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [8, 16])
def test_rows_are_rounded_by_their_own_largest_number_and_the_gradient_passes(bits: int) -> None:
    x = noise(2, 3, 5, 16) * torch.tensor([1.0, 1e-3, 50.0, 0.0, 1.0])[:, None]
    x.requires_grad_()
    made, high = kv.rounded_rows(x, bits), 2 ** (bits - 1) - 1
    scale = x.detach().abs().amax(-1, keepdim=True) / high
    assert float(((made - x).detach().abs() / scale.clamp_min(1e-30)).max()) <= 0.5 * (1 + 1e-2)
    assert torch.equal(made[..., 3, :], torch.zeros(2, 3, 16))
    codes = (made / scale.clamp_min(1e-30)).detach()
    assert float((codes - codes.round()).abs().max()) < 1e-2
    made.backward(weight := noise(2, 3, 5, 16, seed=1))
    assert torch.equal(x.grad, weight)


@pytest.mark.parametrize(("bits", "high"), [(8, 127), (16, 32767)])
def test_the_reference_of_the_chip_rounds_alike_but_for_ties(bits: int, high: int) -> None:
    reference = pytest.importorskip("andes_dimensity.reference")
    x = noise(4, 64, 32)
    codes, step = reference.rounded_rows(x, high)
    ours = kv.rounded_rows(x, bits)
    apart = (ours - codes * step).abs() / step
    assert float((apart > 0.5).float().mean()) < (
        1e-4 if bits == 8 else 2e-2
    )  # the ratio lies within rounding of a tie
    assert float(apart.max()) < 1.01


def test_rows_are_those_of_a_session_of_numba_to_the_bit() -> None:
    pytest.importorskip("andes_numba")
    pipe = Pipeline.from_plugins(
        [*MODEL, {"numba": {"format": "f16", "activations": "exact", "kv": "int8"}}], backend="numba", seed=3
    )
    floats = Pipeline.from_plugins(
        [*MODEL, {"numba": {"format": "f16", "activations": "exact", "kv": "f32"}}], backend="numba", seed=3
    )
    stores = []
    for one in (pipe, floats):
        session = one.session()
        session.prefill(plain_inputs(one, 9, seed=1))
        stores.append(session.store)
    for head in range(pipe.model.text.kv_heads):
        (keys, values, _), (k, v, _) = (store.head(0, head) for store in stores)  # the first layer saw the same rows
        assert torch.equal(keys, kv.rounded_rows(k, 8))
        assert torch.equal(values, kv.rounded_rows(v, 8))


def test_a_packed_model_with_int8_rows_answers_as_it_was_trained(tmp_path: Path) -> None:
    pytest.importorskip("andes_numba")
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": turns}))
    stage = {"stage": "qat", "steps": 3, "max_tokens": 200, "data": [{"path": str(tmp_path / "data.jsonl")}]}
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": "w4_g32", "rate": 1e-3, "kv": 8}}], seed=3)
    pipe.train(structure(Recipe, {"name": "kv", "stages": [stage]}, "recipe"), tmp_path / "run")
    assert type(pipe.model.language_model).__mro__[1] is not kv.RoundingRows
    trained = Pipeline.from_pretrained(tmp_path / "run" / "model", dtype="float32")
    made = trained.compress("qat", codes=str(tmp_path / "run" / "qat"))
    assert made.report["kv_bits"] == 8
    with torch.no_grad():
        for name, weight in trained.model.named_parameters():
            if name not in made.codes:
                weight.copy_(weight.half())  # what the file holds beside the codes
    path = write(
        trained, made, tmp_path / "m.andes", recipe_for(trained, made, "f16") | recipe_for(trained, made, None)
    ).path
    found = {}
    for rows in ("int8", "f32"):
        options = {"numba": {"activations": "exact", "kv": rows}}
        packed = Pipeline.from_pretrained(path, backend="numba", plugins=[options])
        found[rows] = packed.session().prefill(packed.prepare(conversation(0)))
    plain = trained.session().prefill(trained.prepare(conversation(0)))
    kv.put_in(trained.model, 8)
    twin = copy.deepcopy(trained.model.language_model)
    assert isinstance(twin, kv.RoundingRows)
    rounded = trained.session().prefill(trained.prepare(conversation(0)))
    kv.take_out(trained.model)
    assert torch.equal(trained.session().prefill(trained.prepare(conversation(0))), plain)
    size = float(plain.abs().max())
    assert float((found["f32"] - plain).abs().max()) < 1e-4 * size
    assert float((found["int8"] - rounded).abs().max()) < 1e-3 * size  # a code next to a tie may differ
    assert float((rounded - plain).abs().max()) > 2 * float((found["int8"] - rounded).abs().max())


def test_a_record_says_how_rows_were_rounded_or_is_refused(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": turns}))
    stage = {"stage": "qat", "steps": 2, "max_tokens": 200, "data": [{"path": str(tmp_path / "data.jsonl")}]}
    codes = []
    for bits in (0, 8):
        pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": "w4_g32", "rate": 1e-3, "kv": bits}}], seed=3)
        pipe.train(structure(Recipe, {"name": "kv", "stages": [stage]}, "recipe"), tmp_path / f"run{bits}")
        record = read_record(tmp_path / f"run{bits}" / "qat")
        assert record.kv == bits
        codes.append(record.numbers)
    assert codes[0] != codes[1]  # other rows, other gradients
    path = tmp_path / "run8" / "qat" / FACTS
    path.write_text(path.read_text().replace('"kv": 8', '"kv": 7'))
    with pytest.raises(CheckpointError, match="keys and values of 7 bits"):
        read_record(path.parent)


def test_a_refused_training_leaves_the_model_as_it_was_and_the_next_one_runs(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": turns}))
    stage = {"stage": "qat", "steps": 2, "max_tokens": 200, "data": [{"path": str(tmp_path / "data.jsonl")}]}
    recipe = structure(Recipe, {"name": "kv", "stages": [stage]}, "recipe")
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": "w4_g32", "kv": 8, "bits": 0.5}}], seed=3)
    model, kind = pipe.model, type(pipe.model.language_model)
    for n in range(2):
        with pytest.raises(ConfigError, match=r"bits per weight, 0\.5 were asked for"):
            pipe.train(recipe, tmp_path / f"refused{n}")
        assert type(model.language_model) is kind
    kv.put_in(model, 16)
    kv.put_in(model, 8)
    assert model.language_model.kv_bits == 8
    kv.take_out(model)
    assert type(model.language_model) is kind
