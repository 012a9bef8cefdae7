"""Models from GGUF files on the compiled backend: Llama and Qwen2 as well as Qwen3, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_gguf.small import write_small

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.types import Inputs

pytest.importorskip("andes_numba", reason="the backend is not installed: pip install andes-numba")
formats = pytest.importorskip(
    "andes_packing.formats", reason="the formats are not installed: pip install andes-packing"
)

OPTIONS = {"format": "w4_g32", "activations": "exact", "kv": "f32"}
ARCHITECTURES = ("llama", "qwen2", "qwen3")
SCALED = {
    "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128,
}  # fmt: skip


def small(folder: Path, architecture: str, **options: Any) -> Path:
    return write_small(folder / f"{architecture}.gguf", architecture, width=64, head=32, **options)


def opened(path: Path, **more: Any) -> Pipeline:
    """Without rounding: the weights become those that the format holds."""
    pipe = Pipeline.from_plugins(
        ["mlp", {"aimv2": {"preset": "tiny"}}, {"gguf": {"path": str(path)}}, *([{"numba": OPTIONS}] if more else [])],
        **more,
    )
    layout = formats.find("w4_g32")
    with torch.no_grad():
        for weight in pipe.model.language_model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.from_numpy(layout.quantise(weight.float().numpy()).weights()))
    return pipe


def logits(pipe: Pipeline) -> torch.Tensor:
    """Of a prompt, of a tree behind it, of one token after a path of the tree, and of many."""
    session = pipe.session()
    first = session.prefill(Inputs(ids=torch.arange(40)))
    tree, _ = session.extend([1, 2, 3, 4, 5], [-1, 0, 0, -1, 2])
    session.commit([0, 2, 4])
    last, _ = session.extend([6])
    session.commit()
    many, _ = session.extend(list(range(30)))
    return torch.cat([first[None], tree, last, many])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_torch(tmp_path: Path, architecture: str) -> None:
    path = small(tmp_path, architecture)
    got, wanted = logits(opened(path, backend="numba")), logits(opened(path))
    # both add float32 numbers, in another order
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"arrays": {"rope_freqs.weight": np.linspace(1, 8, 16, dtype=np.float32)}}),
        ("qwen2", {"extra": {f"qwen2.{key}": value for key, value in SCALED.items()}}),
    ],
    ids=["factors", "yarn"],
)
def test_other_rotary_positions_are_those_of_torch(tmp_path: Path, architecture: str, options: Any) -> None:
    path = small(tmp_path, architecture, **options)
    got, wanted = logits(opened(path, backend="numba")), logits(opened(path))
    plain = logits(opened(small(tmp_path, architecture)))
    assert float((plain - wanted).abs().max() / wanted.abs().max()) > 1e-2
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_biases_of_q_k_and_v_are_there(tmp_path: Path) -> None:
    path = small(tmp_path, "qwen2")
    pipe = opened(path, backend="numba")
    before = logits(pipe)
    other = opened(path, backend="numba")
    with torch.no_grad():
        other.model.language_model.model.layers[1].self_attn.v_proj.bias += 1.0
    assert not torch.allclose(before, logits(other))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_packed_file_of_it_answers_as_torch_does(tmp_path: Path, architecture: str) -> None:
    packing = pytest.importorskip("andes_compression.pack", reason="pip install andes-compression")
    recipes = pytest.importorskip("andes_compression.recipe")
    source = Pipeline.from_plugins(
        ["mlp", {"aimv2": {"preset": "tiny"}}, {"gguf": {"path": str(small(tmp_path, architecture))}}]
    )
    recipe = recipes.default_recipe(source.model, "w4_g32", head="w4_g32", vision="w8")
    path = packing.pack_model(source.model, recipe, tmp_path / "model.andes", plan=source.plan).path
    exact = {"numba": {"activations": "exact", "kv": "f32"}}
    fast, plain = Pipeline.from_pretrained(path, backend=exact), Pipeline.from_pretrained(path)
    got, wanted = logits(fast), logits(plain)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-4
    options = GenerationOptions(max_tokens=12)
    assert fast.generate("hello", options).tokens == plain.generate("hello", options).tokens


def test_what_the_compiled_pass_lacks_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = opened(small(tmp_path, "qwen2"), backend="numba")
    language = pipe.model.language_model
    plan = {**language.blueprint(), "activation": "gelu", "biased": ["self_attn.o_proj"], "rotary": None, "scale": 1.0}
    monkeypatch.setattr(type(language), "blueprint", lambda self: plan)
    with pytest.raises(BackendUnavailable) as caught:
        pipe.session()
    for what in (
        "'gelu', not 'silu'",
        "self_attn.o_proj: there are no biases",
        "length of the text",
        "multiplied with 1",
    ):
        assert what in caught.value.why
