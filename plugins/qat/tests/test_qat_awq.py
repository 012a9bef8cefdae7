"""AWQ against its definition: the chosen scales never lose more of the outputs than rounding to nearest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_qat.awq import search
from andes_qat.compressors import nearest
from andes_qat.grids import grid

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["w8", "w4_g32", "w4_g128", "w3_g128", "ternary_g128", "ternary34_g128", "nm14_w4"])
def test_awq_never_chooses_what_loses_more_of_the_output_than_rounding(name: str) -> None:
    target = grid(name, "")
    for seed in range(3):
        loud = 1 + 20 * torch.rand(128, generator=torch.Generator().manual_seed(seed)) ** 8
        x, weights = noise(64, 128, seed=seed) * loud, [noise(8, 128, seed=10 + seed), noise(4, 128, seed=20 + seed)]
        found = search(weights, [target] * 2, x.double().T @ x.double(), x.double().abs().mean(0))

        def lost(s: torch.Tensor, clipped: bool, x: torch.Tensor = x, weights: Any = weights) -> float:
            total = 0.0
            for w in weights:
                rounded_ = torch.from_numpy(nearest(w.double() * s, target, search=clipped).weights()).double()
                total += float(((x.double() / s) @ rounded_.T - x.double() @ w.double().T).square().sum())
            return total

        plain, ours = lost(torch.ones(128, dtype=torch.float64), True), lost(found.scale, found.clipped)
        assert ours <= plain * (1 + 1e-9)
        assert found.error == pytest.approx(ours / plain, rel=1e-6)
        assert 0 <= found.alpha < 1


def test_awq_helps_where_few_inputs_are_loud() -> None:
    x = noise(256, 128)
    x[:, 3] *= 50
    weight = noise(16, 128, seed=1)
    found = search([weight], [grid("w4_g128", "")], x.double().T @ x.double(), x.double().abs().mean(0))
    assert found.alpha > 0
    assert found.error < 0.7


def loud(body: str) -> Any:
    """A model with one column of the embedding that is much larger than the others, and its first norm."""
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": body}}], backend="torch", seed=2)
    model: Any = pipe.model.language_model.model
    with torch.no_grad():
        model.embed_tokens.weight[:, 3] *= 50
    return pipe, model.layers[0].input_layernorm.weight


def test_scales_of_columns_and_norms_take_each_other_away_and_codes_are_packed(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in "abc"
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)))
    inputs, off = [{"role": "user", "content": "Hello there"}], {}
    for body in ("w8", "w4_g32"):
        pipe, norm = loud(body)
        floats, before = pipe.session().prefill(pipe.prepare(inputs)), norm.clone()
        made = pipe.compress("awq", data=str(data))
        assert not torch.equal(norm, before)
        assert made.report["output_error"] < 1
        assert made.report["scaled"] == "6 of 6 groups"
        artefact = write(pipe, made, tmp_path / f"{body}.andes", recipe_for(pipe, made, None))
        packed = Pipeline.from_pretrained(artefact.path, backend="torch")
        for name, codes in made.codes.items():
            assert torch.equal(dict(packed.model.named_parameters())[name].float(), torch.from_numpy(codes.weights()))
        off[body] = float((packed.session().prefill(packed.prepare(inputs)) - floats).abs().max() / floats.abs().max())
    assert off["w8"] < 0.02
    with pytest.raises(ConfigError, match="needs calibration data"):
        pipe.compress("awq")
