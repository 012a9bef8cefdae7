"""Folders that peft saved: what is read of them is what peft computes, and the rest is refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, ConfigError, DuplicateName, SessionError
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.types import Inputs

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
PROMPT = torch.tensor([5, 9, 70, 33, 120, 44, 9, 8])
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def language_model() -> Any:
    return Pipeline.from_plugins(MODEL, seed=1).model.language_model


def peft_folder(folder: Path, seed: int = 0, **options: Any) -> Any:
    """Save an adapter with weights that do something -> peft's own model."""
    peft = pytest.importorskip("peft", reason="the folder is peft's")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": EVERY, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
        model = peft.get_peft_model(language_model(), config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3, generator=random)
    model.save_pretrained(str(folder))
    return model.eval()


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=ids[None]).logits[0]
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    made = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("rs")
    peft_folder(made[0])
    peft_folder(made[1], 1, use_rslora=True, r=2, target_modules=["q_proj", "down_proj"])
    return made


@pytest.fixture
def pipeline(folders: tuple[Path, Path]) -> Pipeline:
    pipe = Pipeline.from_plugins(MODEL, seed=1)
    pipe.add_adapter("plain", folders[0])
    pipe.add_adapter("rs", folders[1])
    return pipe


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "up_proj"]},
        {"rank_pattern": {"layers.1.mlp.down_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    ],
    ids=["plain", "rslora", "some layers", "patterns"],
)
def test_logits_are_those_of_peft(options: dict[str, Any], tmp_path: Path) -> None:
    theirs = logits_of(peft_folder(tmp_path, **options), PROMPT)
    pipe = Pipeline.from_plugins(MODEL, seed=1)
    plain = pipe.session().prefill(Inputs(PROMPT))
    pipe.add_adapter("mine", tmp_path)
    session = pipe.session()
    session.adapter = "mine"
    # float32 additions in another order
    assert torch.allclose(session.prefill(Inputs(PROMPT)), theirs[-1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, theirs[-1], atol=1e-2)


def test_names_of_the_whole_model_are_understood(
    pipeline: Pipeline, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    whole = {k.replace("base_model.model.", "base_model.model.language_model."): v for k, v in tensors.items()}
    save_file(whole, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((folders[0] / "adapter_config.json").read_bytes())
    pipeline.add_adapter("whole", tmp_path)
    results = []
    for name in ("plain", "whole"):
        session = pipeline.session()
        session.adapter = name
        results.append(session.prefill(Inputs(PROMPT)))
    assert torch.equal(*results)


def test_a_second_adapter_of_one_name_is_refused(pipeline: Pipeline, folders: tuple[Path, Path]) -> None:
    with pytest.raises(DuplicateName, match="plain"):
        pipeline.add_adapter("plain", folders[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"r": 0}, "r is 0"),
        ({"some_new_feature": 3}, "some_new_feature"),
    ],
)
def test_what_is_not_computed_is_refused(
    change: dict[str, Any], words: str, pipeline: Pipeline, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=words):
        pipeline.add_adapter("other", tmp_path)


def test_matrices_that_do_not_fit_are_refused_all_at_once(
    pipeline: Pipeline, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    layer = "base_model.model.model.layers.0.self_attn."
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    tensors[f"{layer}q_proj.lora_A.weight"] = torch.zeros(3, 48)
    del tensors[f"{layer}k_proj.lora_B.weight"]
    tensors[f"{layer}v_proj.lora_B.weight"] = torch.full((32, 4), torch.nan)
    tensors[f"{layer}x_proj.lora_A.weight"] = torch.zeros(4, 48)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 512)
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 48)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((folders[0] / "adapter_config.json").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        pipeline.add_adapter("other", tmp_path)
    for words in ("lora_A is [3, 48], not [4, 48]", "k_proj: only lora_A", "not finite", "no such linear layer",
                  "lora_embedding_A", "only linear layers inside a numbered"):  # fmt: skip
        assert words in caught.value.why


def test_a_folder_that_is_none_and_a_damaged_file_are_refused(
    pipeline: Pipeline, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        pipeline.add_adapter("other", tmp_path)
    (tmp_path / "adapter_config.json").write_bytes((folders[0] / "adapter_config.json").read_bytes())
    whole = (folders[0] / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        pipeline.add_adapter("other", tmp_path)


def test_other_language_models_take_adapters_too(tmp_path: Path) -> None:
    parts = [ReferenceEncoder(), ReferenceProjector(), ReferenceLanguageModel(), ReferenceTokenizer()]
    pipe = Pipeline.from_plugins(parts)
    name, layer = next((n, m) for n, m in pipe.model.language_model.named_modules() if n.endswith("up"))
    a, b = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    key = f"base_model.model.{name}"
    save_file({f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pipe.add_adapter("up", tmp_path)
    session = pipe.session()
    session.adapter = "up"
    got = session.prefill(Inputs(PROMPT[:4]))
    with torch.no_grad():
        layer.weight += 2 * b @ a  # the merged model, which is the definition
    assert torch.allclose(got, pipe.session().prefill(Inputs(PROMPT[:4])), atol=1e-4)


def test_an_adapter_is_removed_when_no_open_session_uses_it(pipeline: Pipeline, folders: tuple[Path, Path]) -> None:
    session, other = pipeline.session(), pipeline.session()
    session.adapter = "plain"
    wanted = session.prefill(Inputs(PROMPT))
    with pytest.raises(SessionError, match="adapter 'plain': 1 open sessions use it"):
        pipeline.remove_adapter("plain")
    session.close()
    pipeline.remove_adapter("plain")
    with pytest.raises(SessionError, match="no adapter 'plain'"):
        other.adapter = "plain"
    with pytest.raises(ConfigError, match="no adapter 'plain'"):
        pipeline.remove_adapter("plain")
    pipeline.add_adapter("plain", folders[1])  # another one of that name
    other.adapter = "plain"
    assert not torch.equal(other.prefill(Inputs(PROMPT)), wanted)


def test_another_base_is_refused_with_both_numbers(
    pipeline: Pipeline, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    for file in folders[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"andes_base": "a" * 64}))
    with pytest.raises(ConfigError, match=f"trained on numbers {'a' * 64}, this model was not compressed"):
        pipeline.add_adapter("based", tmp_path)
    pipeline.model.numbers = "b" * 64
    with pytest.raises(ConfigError, match=f"numbers {'a' * 64}, this model has {'b' * 64}"):
        pipeline.add_adapter("based", tmp_path)
    pipeline.model.numbers = "a" * 64
    pipeline.add_adapter("based", tmp_path)
    assert pipeline.compiled.adapters["based"].base == "a" * 64
    config.write_text(json.dumps(json.loads(config.read_text()) | {"andes_base": 3}))
    with pytest.raises(ConfigError, match="andes_base is 3, not a text"):
        pipeline.add_adapter("wrong", tmp_path)
