"""Adapters for the device: what LiteRT-LM does not take is refused, before anything is written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from andes_dimensity import adapters
from andes_dimensity import check as checking
from andes_dimensity import export as exporting
from andes_dimensity.adapters import fitting, made_up, names_of, promised, refuse_other, shapes, tables
from andes_dimensity.bundle import identity
from andes_dimensity.options import Options
from safetensors.torch import save_file

from andes_sdk.errors import BackendUnavailable, CheckpointError, ConfigError
from andes_sdk.types import Adapter, LowRank

Q, UP = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.up_proj"


def adapter_of(pipe, layer, rank):
    rows, columns = pipe.model.language_model.get_submodule(layer).weight.shape
    low = LowRank(a=torch.ones(rank, columns), b=torch.ones(rows, rank), scale=0.5)
    return Adapter(name="one", layers={layer: low})


def test_tables_have_the_shapes_of_the_graph_and_the_scale_in_b(pipe):
    told = tables(pipe, adapter_of(pipe, Q, 4), 16)
    assert {name: array.shape for name, array in told.items()} == shapes(pipe, 16)
    a, b = (told[f"lora_atten_q_{side}_prime_weight_1"] for side in "ab")
    assert (a[:, :4] == 1).all()
    assert (b[:4] == 0.5).all()
    assert not a[:, 4:].any()
    assert not b[4:].any()
    assert sum(bool(array.any()) for array in told.values()) == 2
    assert not any(array.any() for array in tables(pipe, None, 32).values())


def test_a_made_up_adapter_adds_what_its_tables_add(pipe):
    adapter, told = made_up(pipe, 16)
    low = adapter.layers[Q]
    x = torch.randn(3, low.a.shape[1])
    a, b = (torch.from_numpy(told[f"lora_atten_q_{side}_prime_weight_1"]) for side in "ab")
    assert torch.allclose(x @ a @ b, x @ low.a.T @ low.b.T * low.scale, atol=1e-5)


def test_layers_that_litert_lm_gives_no_adapter_are_named(pipe):
    with pytest.raises(ConfigError, match="cannot be adapted on the device") as caught:
        tables(pipe, adapter_of(pipe, UP, 4), 16)
    assert caught.value.who == UP
    assert "q_proj, k_proj, v_proj and o_proj" in caught.value.why


@pytest.mark.parametrize(("rank", "fix"), [(17, "--lora 32"), (40, "rank 32 or less")])
def test_ranks_above_the_graph_s_are_refused(rank, fix, pipe):
    with pytest.raises(ConfigError, match=f"rank {rank}") as caught:
        tables(pipe, adapter_of(pipe, Q, rank), 16)
    assert fix in caught.value.fix


def test_an_adapter_of_another_base_or_contract_is_refused(pipe, tmp_path, monkeypatch):
    own, bundle = identity(pipe)["numbers"], tmp_path / "model.litertlm"
    monkeypatch.setattr(adapters, "contract_mark", lambda _: {"hash": "a" * 64})
    refuse_other(pipe, tmp_path, {"numbers": own}, bundle)
    refuse_other(pipe, tmp_path, {"numbers": own, "contract": "a" * 64}, bundle)
    with pytest.raises(ConfigError, match="another contract") as caught:
        refuse_other(pipe, tmp_path, {"numbers": own, "contract": "b" * 64}, bundle)
    assert "bbbb" in caught.value.why
    with pytest.raises(ConfigError, match="of another base"):
        refuse_other(pipe, tmp_path, {"numbers": "weights:0"}, bundle)
    monkeypatch.setattr(adapters, "contract_mark", lambda _: None)
    with pytest.raises(ConfigError, match="another contract") as caught:
        refuse_other(pipe, tmp_path, {"numbers": own, "contract": "b" * 64}, bundle)
    assert "the adapter none" in caught.value.why


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    a, b, c = tmp_path / "one" / "sums", tmp_path / "two" / "sums", tmp_path / "one" / "words"
    assert names_of([a, b, c]) == {str(a): a, str(b): b, "words": c}
    with pytest.raises(ConfigError, match="given twice"):
        names_of([a, c, a])


def saved(pipe, folder, base):
    """An adapter of q of rank 4, as peft saves it, that says what it was trained on."""
    low = adapter_of(pipe, Q, 4).layers[Q]
    folder.mkdir()
    at = f"base_model.model.{Q}.lora"
    save_file({f"{at}_A.weight": low.a, f"{at}_B.weight": low.b}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], "andes_base": base}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_that_a_bundle_does_not_take_is_refused_before_anything_runs(pipe, tmp_path, monkeypatch):
    own, bundle = identity(pipe)["numbers"], tmp_path / "model.litertlm"
    told = {"options": {"lora": 16}, "said": {"numbers": own}}
    mine, foreign = saved(pipe, tmp_path / "mine", own), saved(pipe, tmp_path / "foreign", "weights:" + "0" * 64)
    assert fitting(pipe, mine, "sums", told, bundle).name == "sums"
    talk = [[{"role": "user", "content": []}]]
    monkeypatch.setattr(checking, "python", lambda: None)
    monkeypatch.setattr(checking, "opened", lambda *_: told)
    with pytest.raises(ConfigError, match="another base"):
        checking.check(pipe, bundle, talk, adapters=[mine, foreign])
    told["options"] = {"lora": 0}
    with pytest.raises(ConfigError, match="the bundle takes no adapters"):
        checking.check(pipe, bundle, talk, adapters=[mine])
    with pytest.raises(ConfigError, match="there are no conversations"):
        checking.check(pipe, bundle, [], adapters=[mine])


def test_a_contract_belongs_to_the_packed_base_that_it_was_made_of(pipe, tmp_path, monkeypatch):
    contract = SimpleNamespace(hash="c" * 64, rank=16, mark={"numbers": "1"})
    monkeypatch.setattr(adapters, "read_contract", lambda _: contract)
    with pytest.raises(ConfigError, match="belongs to a packed base"):
        promised(pipe, tmp_path / "contract.json", 16)
    own = SimpleNamespace(mark={"numbers": "1"})
    monkeypatch.setattr(adapters, "contract_of", lambda *_: own)
    packed = SimpleNamespace(artefact=object(), tokenizer=None)
    monkeypatch.setattr(adapters, "differing", lambda *_: [])
    assert promised(packed, tmp_path / "contract.json", 16) == {"contract": "c" * 64}
    with pytest.raises(ConfigError, match="do not fit"):
        promised(packed, tmp_path / "contract.json", 0)
    monkeypatch.setattr(adapters, "differing", lambda *_: ["scales of weights"])
    with pytest.raises(ConfigError, match="another base") as caught:
        promised(packed, tmp_path / "contract.json", 16)
    assert "scales of weights" in caught.value.why


def test_static_int16_takes_no_adapters(pipe, tmp_path):
    options = Options(rows=32, layout="npu", activations="a16", lora=16)
    with pytest.raises(ConfigError, match="takes no adapters"):
        exporting.export(pipe, tmp_path / "a.tflite", options)


@pytest.mark.parametrize("rank", [8, 64])
def test_ranks_that_litert_lm_lacks_are_refused(rank):
    with pytest.raises(ValueError, match="lora"):
        Options(lora=rank)


def test_a_full_disk_is_told_before_and_while_a_file_is_written(pipe, tmp_path, monkeypatch):
    out = tmp_path / "model.tflite"
    out.write_bytes(b"of before")
    monkeypatch.setenv("ANDES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(exporting, "python", lambda: None)
    monkeypatch.setattr(exporting, "EACH", 1 << 50)
    with pytest.raises(BackendUnavailable, match="no room"):
        exporting.export(pipe, out, Options(rows=32))
    monkeypatch.setattr(exporting, "EACH", 8)

    def done(place, *_):
        (place / "text.tflite").write_bytes(b"graphs")
        return {"files": {}}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "work", done)
    monkeypatch.setattr(exporting, "copyfile", full)
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        exporting.export(pipe, out, Options(rows=32))
    assert "No space left" in caught.value.why
    monkeypatch.undo()
    assert out.read_bytes() == b"of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "model.tflite"]
    assert not np.any(list((tmp_path / "cache").iterdir()))
