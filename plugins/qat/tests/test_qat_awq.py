"""AWQ against its definition: the chosen scales never lose more of the outputs than rounding to nearest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_qat import awq
from andes_qat.awq import search
from andes_qat.compressors import nearest
from andes_qat.grids import grid

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError
from andes_sdk.types import Compressed

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


def loud(body: str, **options: Any) -> Any:
    """A model with one column of the embedding that is much larger than the others, and its first norm."""
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": body, **options}}], backend="torch", seed=2)
    model: Any = pipe.model.language_model.model
    with torch.no_grad():
        model.embed_tokens.weight[:, 3] *= 50
    return pipe, model.layers[0].input_layernorm.weight


def data_of(folder: Path) -> str:
    """Three lines to calibrate with."""
    lines = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]} for i in "abc"
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "data.jsonl")


def logits(pipe: Any) -> torch.Tensor:
    return pipe.session().prefill(pipe.prepare([{"role": "user", "content": "Hello there"}]))


class Offset(torch.nn.Module):
    """A norm whose factor is 1 + weight, so that dividing the weight divides nothing."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.detach() - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


@pytest.mark.parametrize(
    ("options", "scaled"),
    [({"roles": {"q": ""}}, 4), ({"body": "", "roles": {"k": "w8", "v": "w8"}}, 0), ({"roles": {"up": ""}}, 2)],
)
def test_matrices_that_stay_in_floats_keep_the_inputs_that_they_had(options: Any, scaled: int, tmp_path: Path) -> None:
    pipe, norm = loud(**{"body": "w8", **options})
    floats, before = logits(pipe), norm.clone()
    made = pipe.compress("awq", data=data_of(tmp_path))
    assert made.report["scaled"].startswith(f"{scaled} of ")
    assert torch.equal(norm, before) == ("up" not in options["roles"])
    assert float((logits(pipe) - floats).abs().max() / floats.abs().max()) < 0.02


def test_a_norm_that_does_not_multiply_or_stands_elsewhere_is_not_divided(tmp_path: Path) -> None:
    pipe, norm = loud("w8")
    layers: Any = pipe.model.language_model.model.layers
    layers[0].input_layernorm = Offset(norm)
    layers[1].mlp.gate_proj.register_forward_pre_hook(lambda module, args: (args[0] + 1,))  # of another norm
    floats, kept = logits(pipe), layers[1].post_attention_layernorm.weight.clone()
    made = pipe.compress("awq", data=data_of(tmp_path))
    assert made.report["scaled"] == "4 of 6 groups"
    assert torch.equal(layers[0].input_layernorm.weight, norm - 1)
    assert torch.equal(layers[1].post_attention_layernorm.weight, kept)
    assert float((logits(pipe) - floats).abs().max() / floats.abs().max()) < 0.02


def test_scales_change_nothing_but_the_rounding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Exact(NamedTuple):
        own: torch.Tensor

        def weights(self) -> Any:
            return self.own.numpy()

    pipe, norm = loud("w4_g32")
    floats, before = logits(pipe), norm.clone()
    monkeypatch.setattr(awq, "nearest", lambda weight, target, *, search=True: Exact(weight))
    monkeypatch.setattr(awq, "output_error", lambda weight, scale, *more, **how: -float(scale.max()))  # far scales
    made = {}
    monkeypatch.setattr(awq, "Compressed", lambda **facts: made.update(facts) or Compressed(report=facts["report"]))
    assert pipe.compress("awq", data=data_of(tmp_path)).report["scaled"] == "6 of 6 groups"
    far = (norm / before).detach()
    assert float(far.max() / far.min()) > 3
    assert float((logits(pipe) - floats).abs().max() / floats.abs().max()) < 1e-4


def test_scales_are_those_that_a_norm_of_16_bits_is_divided_by() -> None:
    x, weight, norm = noise(64, 128) * torch.linspace(0.1, 9, 128), noise(8, 128, seed=1), noise(128, seed=2).bfloat16()
    found = search([weight], [grid("w4_g128", "")], x.double().T @ x.double(), x.double().abs().mean(0), held=norm)
    assert found.alpha > 0
    after = (norm.double() / found.scale).bfloat16()
    torch.testing.assert_close(after.double() * found.scale, norm.double(), rtol=1e-12, atol=0)


def test_scales_of_columns_and_norms_take_each_other_away_and_codes_are_packed(tmp_path: Path) -> None:
    data = data_of(tmp_path)
    inputs, off = [{"role": "user", "content": "Hello there"}], {}
    for body in ("w8", "w4_g32"):
        pipe, norm = loud(body)
        floats, before = pipe.session().prefill(pipe.prepare(inputs)), norm.clone()
        made = pipe.compress("awq", data=data)
        assert not torch.equal(norm, before)
        assert made.report["output_error"] < 1
        assert made.report["scaled"] == "6 of 6 groups"
        artefact = write(pipe, made, tmp_path / f"{body}.andes", recipe_for(pipe, made, None))
        packed = Pipeline.from_pretrained(artefact.path, backend="torch")
        for name, codes in made.codes.items():
            assert torch.equal(dict(packed.model.named_parameters())[name].float(), torch.from_numpy(codes.weights()))
        off[body] = float((packed.session().prefill(packed.prepare(inputs)) - floats).abs().max() / floats.abs().max())
    assert off["w8"] < 0.02
    assert off["w8"] < off["w4_g32"] < 0.5
    with pytest.raises(ConfigError, match="needs calibration data"):
        pipe.compress("awq")
