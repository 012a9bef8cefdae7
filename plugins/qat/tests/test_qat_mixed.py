"""Mixed grids: the target of bits holds, the budget goes where the loss feels it, and what is packed agrees."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_compression.bpw import of_artefact
from andes_compression.compress import recipe_for, write
from andes_qat.grids import grid
from andes_qat.mixed import allot, sensitivity
from andes_sparsity.calibration import Calibration

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError
from andes_sdk.testing.material import conversation

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def pipeline(**options: Any) -> Pipeline:
    return Pipeline.from_plugins([*MODEL, {"qat": options}], backend="torch", seed=3)


@pytest.fixture
def data(tmp_path: Path) -> str:
    lines = [
        {"messages": [{"role": "user", "content": f"{w}?"}, {"role": "assistant", "content": f"{w} " * 5}]}
        for w in ("alpha", "beta", "gamma")
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "data.jsonl")


def test_allot_is_near_the_best_choice_there_is_and_within_the_budget() -> None:
    rng = torch.Generator().manual_seed(0)
    names, grids = "abcde", ("small", "middle", "large")
    for _ in range(20):
        sizes = {n: dict(zip(grids, (10, 20, 40), strict=True)) for n in names}
        rises = {
            n: dict(zip(grids, torch.rand(3, generator=rng).sort(descending=True)[0].tolist(), strict=True))
            for n in names
        }
        chosen = allot(sizes, rises, 110)
        assert sum(sizes[n][g] for n, g in chosen.items()) <= 110
        every = [dict(zip(names, pick, strict=True)) for pick in itertools.product(grids, repeat=5)]
        fits = [
            sum(rises[n][g] for n, g in one.items()) for one in every if sum(sizes[n][g] for n, g in one.items()) <= 110
        ]
        smallest = sum(one["small"] for one in rises.values())
        reached = sum(rises[n][g] for n, g in chosen.items())
        assert smallest - reached >= 0.8 * (smallest - min(fits))


def test_what_the_loss_feels_most_is_estimated_to_rise_most(data: str) -> None:
    pipe = pipeline()
    with torch.no_grad():  # a layer that does nothing is felt by nothing
        pipe.model.get_submodule("language_model.model.layers.1.mlp.down_proj").weight.zero_()
    packs = Calibration.of(pipe.model, data, 3, 64, "test").packs
    rises = sensitivity(pipe.model, packs, {n: grid(n, "") for n in ("ternary_g128", "w4_g32", "w8")})
    assert len(rises) == 14
    for name, one in rises.items():
        if "layers.1.mlp" in name:
            assert max(one.values()) == pytest.approx(0, abs=1e-12)
        else:
            assert one["ternary_g128"] > one["w4_g32"] > one["w8"] > 0
    assert all(p.grad is None for p in pipe.model.parameters())


@pytest.mark.parametrize(("units", "bits"), [("kinds", 4.0), ("matrices", 3.6), ("matrices", 6.0)])
def test_the_target_holds_in_the_file_too(units: str, bits: float, data: str, tmp_path: Path) -> None:
    pipe = pipeline(data=data, units=units)
    made = pipe.compress("mixed", bits=bits)
    assert bits - 1 < made.report["bits"] <= bits
    roles = made.report["roles"]
    assert len(roles) == (7 if units == "kinds" else 14)
    assert len(set(roles.values())) > 1
    formats = recipe_for(pipe, made, "f16") | {n: f for n, f in recipe_for(pipe, made, None).items() if n in made.codes}
    artefact = write(pipe, made, tmp_path / "model.andes", formats)
    body = next(g for g in of_artefact(artefact).to_dict()["groups"] if g["group"] == "body")
    assert body["type_bpw"]["disk"] == pytest.approx(made.report["bits"], abs=0.01)
    if units == "kinds":  # what numba runs
        packed = [Pipeline.from_pretrained(artefact.path, backend=b) for b in ("torch", "numba")]
        one, two = (p.session().prefill(p.prepare(conversation())) for p in packed)
        assert float((one - two).abs().max() / one.abs().max()) < 0.05
    again = pipeline(roles=roles, bits=bits).compress("qat")  # the report's choice is the plugin's option
    assert all(np.array_equal(again.codes[n].values, c.values) for n, c in made.codes.items())


def test_bits_that_no_grid_reaches_name_the_nearest(data: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)1\.2 bits per weight cannot be reached.*set bits = \d"):
        pipeline(data=data).compress("mixed", bits=1.2)
    with pytest.raises(ConfigError, match="needs a target"):
        pipeline(data=data).compress("mixed")
    with pytest.raises(ConfigError, match="no grid 'w5'"):
        pipeline(data=data, candidates=["w5"]).compress("mixed", bits=3.0)
