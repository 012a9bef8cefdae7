"""The published layout: read, and given back byte for byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, CheckpointError
from andes_sdk.storage.checkpoint import stored_plan

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
VISION = {
    "aimv2": {
        "model_type": "aimv2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "patch_size": 14,
        "num_attention_heads": 2, "image_size": 56, "preserve_original_pe": True, "interpolate_pe_method": "two_dim",
        "fullatt_block_indexes": None, "window_size": 112, "min_pixels": 3136, "torch_dtype": "bfloat16",
    },
    "siglip2": {
        "model_type": "siglip2_navit_rope_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "patch_size": 16, "num_patches": 16, "hidden_act": "gelu_pytorch_tanh",
    },
}  # fmt: skip
TEXT = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 512, "hidden_size": 48,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 4096, "rope_theta": 1000000, "rope_scaling": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": False,
}  # fmt: skip


def published_config(encoder: str) -> dict:
    return {
        "_name_or_path": "/somewhere", "architectures": ["AndesVLForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_andesvl.AndesVLConfig"}, "model_type": f"andesvl-{encoder}-qwen3",
        "text_config": TEXT, "vision_config": VISION[encoder], "torch_dtype": "bfloat16", "a_key_of_theirs": [1, "é"],
        "transformers_version": "4.52.4",
    }  # fmt: skip


def write_published(folder: Path, encoder: str, *, form: str, head: bool) -> Path:
    """A synthetic checkpoint as published: names, `config.json`, side files, weights in bfloat16."""
    made = Pipeline.from_plugins([{encoder: {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=3)
    folder.mkdir()
    made.tokenizer.save(folder)
    tensors = {n: t.bfloat16().clone() for n, t in made.model.state_dict().items() if head or n != HEAD}
    # odd spacing on purpose: the file must come back as it is, not as we would write it
    (folder / "config.json").write_text(json.dumps(published_config(encoder), indent=3, ensure_ascii=False) + "\n\n")
    (folder / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.6, "top_k": 20}')
    (folder / "configuration_andesvl.py").write_text("raise SystemExit('this must never run')\n")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    if form == "single":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(tensors)
    suffix, stem = ("bin", "pytorch_model") if form == "bin" else ("safetensors", "model")
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        shard = {name: tensors[name] for name in part}
        torch.save(shard, folder / file) if form == "bin" else save_file(shard, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    for path in folder.glob("*.bin"):
        tensors |= torch.load(path, weights_only=True)
    return tensors


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("form", ["single", "sharded", "bin"])
@pytest.mark.parametrize("encoder", ["aimv2", "siglip2"])
def test_published_to_ours_and_back_is_bit_exact(encoder, form, head, tmp_path):
    original = write_published(tmp_path / "original", encoder, form=form, head=head)
    ours = Pipeline.from_pretrained(original).save_pretrained(tmp_path / "ours")
    assert (HEAD in load_file(ours / "model.safetensors")) is False
    back = Pipeline.from_pretrained(ours).save_pretrained(tmp_path / "back", layout="published")

    before, after = stored(original), stored(back)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype == torch.bfloat16
        assert torch.equal(before[name].view(torch.int16), after[name].view(torch.int16)), name
    weights = ("*.safetensors", "*.bin", "*.index.json")
    side = {p.name for p in original.iterdir() if not any(p.match(w) for w in weights)}
    assert side == {p.name for p in back.iterdir() if not any(p.match(w) for w in weights)}
    for name in side:
        assert (back / name).read_bytes() == (original / name).read_bytes(), name


def test_shards_keep_their_tensors_and_bin_becomes_safetensors(tmp_path):
    original = write_published(tmp_path / "original", "aimv2", form="bin", head=True)
    back = Pipeline.from_pretrained(original).save_pretrained(tmp_path / "back", layout="published")
    theirs = json.loads((original / "pytorch_model.bin.index.json").read_text())
    ours = json.loads((back / "model.safetensors.index.json").read_text())
    renamed = {
        n: f.replace("pytorch_model", "model").replace(".bin", ".safetensors") for n, f in theirs["weight_map"].items()
    }
    assert ours["weight_map"] == renamed
    assert ours["metadata"] == theirs["metadata"]
    for file in set(renamed.values()):
        with safe_open(back / file, framework="pt") as handle:
            assert set(handle.keys()) == {name for name, target in renamed.items() if target == file}


def test_a_published_checkpoint_runs_in_its_own_precision(tmp_path):
    pipeline = Pipeline.from_pretrained(write_published(tmp_path / "x", "siglip2", form="single", head=True))
    assert pipeline.plan.dtype == "bfloat16"
    assert pipeline.plan.names == ("siglip2", "mlp", "qwen3")
    assert pipeline.model.language_model.tied
    assert pipeline.model.language_model.config.rope_parameters["rope_theta"] == 1_000_000


def test_another_precision_is_written_into_the_configuration_and_nothing_else_is(tmp_path):
    original = write_published(tmp_path / "x", "aimv2", form="single", head=False)
    back = Pipeline.from_pretrained(original).save_pretrained(tmp_path / "y", layout="published", dtype="float32")
    config = json.loads((back / "config.json").read_text())
    assert config == published_config("aimv2") | {"torch_dtype": "float32"}
    assert Pipeline.from_pretrained(back).model.dtype == torch.float32


def test_changed_modules_are_described_anew_instead_of_by_the_old_configuration(tmp_path):
    original = write_published(tmp_path / "x", "siglip2", form="single", head=False)
    changed = Pipeline.from_pretrained(
        original, plugins=[{"siglip2": {"config": VISION["siglip2"] | {"hidden_act": "gelu"}}}]
    )
    back = changed.save_pretrained(tmp_path / "y", layout="published")
    config = json.loads((back / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == "gelu"
    assert "a_key_of_theirs" not in config
    again = Pipeline.from_pretrained(back)
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in changed.model.state_dict().items())


def test_absent_fields_mean_what_the_publishing_classes_mean_by_them(tmp_path):
    config = published_config("aimv2")
    config["vision_config"] = {k: v for k, v in VISION["aimv2"].items() if k != "interpolate_pe_method"}
    config["text_config"] = {k: v for k, v in TEXT.items() if k not in ("rope_theta", "tie_word_embeddings")}
    folder = write_published(tmp_path / "x", "aimv2", form="single", head=True)
    (folder / "config.json").write_text(json.dumps(config))
    plan = stored_plan(folder)
    options = {p.name: p.options["config"] for p in plan.plugins if p.options}
    assert options["aimv2"]["interpolate_pe_method"] == "one_dim"
    # transformers.Qwen3Config() has theta 10000 and an untied head
    assert (options["qwen3"]["rope_theta"], options["qwen3"]["tie_word_embeddings"]) == (10000.0, False)
    model = Pipeline.from_pretrained(folder).model
    assert not model.language_model.tied
    assert torch.equal(model.language_model.lm_head.weight, model.language_model.model.embed_tokens.weight)


@pytest.mark.parametrize(("spelling", "value"), [("torch_dtype", "torch.bfloat16"), ("dtype", "bfloat16")])
def test_older_and_newer_spellings_of_a_configuration_are_read(spelling, value, tmp_path):
    folder = write_published(tmp_path / "x", "aimv2", form="single", head=False)
    config = published_config("aimv2")
    del config["torch_dtype"]
    config["llm_config"] = config.pop("text_config") | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    del config["llm_config"]["rope_theta"], config["llm_config"]["torch_dtype"]
    (folder / "config.json").write_text(json.dumps(config | {spelling: value}))
    model = Pipeline.from_pretrained(folder).model
    assert model.dtype == torch.bfloat16
    assert model.language_model.config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"vision_config": None}, "has no vision_config"),
        ({"text_config": []}, "has no text_config"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"torch_dtype": 16}, "torch_dtype"),
        ({"torch_dtype": "bfloat17"}, "bfloat16"),
        ({"text_config": TEXT | {"num_hidden_layers": 10**9}}, "no model is so large"),
        ({"text_config": TEXT | {"hidden_sizes": 48}}, "hidden_size"),
        ({"vision_config": VISION["aimv2"] | {"hidden_size": "32"}}, "hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_used_says_why(change, reason, tmp_path):
    folder = write_published(tmp_path / "x", "aimv2", form="single", head=False)
    (folder / "config.json").write_text(json.dumps(published_config("aimv2") | change))
    with pytest.raises((AndesError, ExceptionGroup)) as error:
        Pipeline.from_pretrained(folder)
    assert reason in str(error.value)


def test_modules_that_the_published_form_cannot_describe_are_refused_in_it_only(tmp_path):
    import attrs

    from andes_sdk import hookimpl

    @attrs.frozen(eq=False, kw_only=True)
    class Narrow:
        contract = "1.1"

        @hookimpl
        def andes_projector(self, vision, text):
            return torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 4)), torch.nn.Flatten(1), torch.nn.Linear(128, 48))

    pipeline = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, Narrow(), {"qwen3": {"preset": "tiny"}}])
    with pytest.raises(CheckpointError, match='layout="andes"'):
        pipeline.save_pretrained(tmp_path / "x", layout="published")
    folder = pipeline.save_pretrained(tmp_path / "y")
    assert not (folder / "config.json").exists()
    back = Pipeline.from_pretrained(folder, plugins=[Narrow()])
    assert torch.equal(back.model.mlp[2].weight, pipeline.model.mlp[2].weight)
