"""Saving and loading: strict, whole or not at all, and nothing of a checkpoint is ever run."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from attrs import frozen
from safetensors.torch import load_file, save_file
from stevedore import ExtensionManager

from andes_sdk import Pipeline, hookimpl
from andes_sdk.assembling.extending import extended
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, PlanError
from andes_sdk.storage.checkpoint import load_weights, stored_plan
from andes_sdk.types import Event

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
BIAS = "mlp.2.bias"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins(TINY, seed=7)


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    return pipeline.save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy in our layout."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def published(pipeline, tmp_path) -> Path:
    """A single-file checkpoint in the published layout, which has no checksums."""
    return pipeline.save_pretrained(tmp_path / "published", layout="published")


def edit(folder: Path, change) -> None:
    """Rewrite model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    tensors = change(tensors) or tensors
    save_file(tensors, folder / "model.safetensors")


def as_bin(folder: Path) -> Path:
    """The same weights as pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def sharded(folder: Path, *, suffix: str = "safetensors") -> Path:
    """The same weights in two shards with an index."""
    tensors = load_file(folder / "model.safetensors")
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    half = len(tensors) // 2
    weight_map = {}
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        file = f"{stem}-{number:05d}-of-00002.{suffix}"
        shard = {name: tensors[name] for name in names}
        save_file(shard, folder / file) if suffix == "safetensors" else torch.save(shard, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def assert_same_weights(a: Pipeline, b: Pipeline) -> None:
    left, right = a.model.state_dict(), b.model.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        _ = Pipeline.from_pretrained(folder).model
    return str(error.value)


# ---------------------------------------------------------------- round trips


def test_a_saved_pipeline_comes_back_with_its_plan_and_its_weights_to_the_bit(pipeline, folder):
    back = Pipeline.from_pretrained(folder)
    assert_same_weights(pipeline, back)
    assert back.plan == pipeline.plan
    assert back.model.language_model.tied
    assert not any(t.is_meta for t in [*back.model.parameters(), *back.model.buffers()])
    assert not back.model.training


def test_the_loaded_model_computes_what_the_saved_one_computes(pipeline, folder):
    back = Pipeline.from_pretrained(folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(pipeline.model.language_model(ids).logits, back.model.language_model(ids).logits)
        patches = torch.randn(16, 588, generator=torch.Generator().manual_seed(0))
        images = [p.model.mlp(p.model.vision_encoder(patches, [(4, 4)])) for p in (pipeline, back)]
    assert torch.equal(*images)


def test_the_tied_head_is_stored_once(folder, pipeline):
    assert HEAD not in load_file(folder / "model.safetensors")
    manifest = json.loads((folder / "andes.json").read_text())
    assert manifest["parameters"] == pipeline.model.parameter_count()
    assert set(manifest["tensors"]) == set(load_file(folder / "model.safetensors"))


def test_an_untied_head_is_stored_and_comes_back(tmp_path):
    untied = Pipeline.from_plugins([*TINY[:2], {"qwen3": {"preset": "tiny", "config": {"tie_word_embeddings": False}}}])
    for layout in ("andes", "published"):
        folder = untied.save_pretrained(tmp_path / layout, layout=layout)
        back = Pipeline.from_pretrained(folder)
        assert_same_weights(untied, back)
        assert not back.model.language_model.tied
        assert HEAD in load_file(folder / "model.safetensors")


def test_saving_in_another_dtype_leaves_the_live_model_alone(pipeline, tmp_path):
    before = {name: tensor.clone() for name, tensor in pipeline.model.state_dict().items()}
    back = Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "half", dtype="bfloat16"))
    assert back.plan.dtype == "bfloat16"
    assert {t.dtype for t in back.model.parameters()} == {torch.bfloat16}
    for name, tensor in pipeline.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(back.model.state_dict()[name], tensor.bfloat16())


def test_dtype_none_keeps_the_checkpoints_and_another_converts(pipeline, tmp_path):
    folder = pipeline.save_pretrained(tmp_path / "half", dtype="bfloat16")
    wide = Pipeline.from_pretrained(folder, dtype="float32")
    assert wide.model.dtype == torch.float32
    half = Pipeline.from_pretrained(folder)
    assert torch.equal(wide.model.mlp[2].weight, half.model.mlp[2].weight.float())
    # rotary frequencies are computed, not stored: full precision in both
    assert half.model.language_model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_trained_tied_model_can_be_saved_over_the_checkpoint_it_came_from(folder):
    live = Pipeline.from_pretrained(folder)
    with torch.no_grad():
        live.model.mlp[2].bias.add_(1)
    live.save_pretrained(folder)
    assert_same_weights(live, Pipeline.from_pretrained(folder))


def test_large_models_are_written_in_shards_with_an_index(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("andes_sdk.storage.checkpoint.shards.SHARD_BYTES", 60_000)
    folder = pipeline.save_pretrained(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 4 * pipeline.model.parameter_count()
    assert_same_weights(pipeline, Pipeline.from_pretrained(folder))


@pytest.mark.parametrize("form", ["safetensors", "sharded", "bin", "old bin", "sharded bin"])
def test_every_published_form_of_weights_is_read(form, pipeline, published):
    if form == "sharded":
        sharded(published)
    elif form == "bin":
        as_bin(published)
    elif form == "old bin":
        tensors = load_file(published / "model.safetensors")
        torch.save(tensors, published / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        (published / "model.safetensors").unlink()
    elif form == "sharded bin":
        sharded(published, suffix="bin")
    assert_same_weights(pipeline, Pipeline.from_pretrained(published))


def test_safetensors_are_preferred_to_bin(pipeline, published):
    (published / "pytorch_model.bin").write_bytes(b"never read")
    assert_same_weights(pipeline, Pipeline.from_pretrained(published))


def test_a_loaded_model_does_not_change_with_its_file(pipeline, published):
    back = Pipeline.from_pretrained(published)
    _ = back.model
    path = published / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same_weights(pipeline, back)


# ---------------------------------------------------------------- strictness


def test_missing_extra_and_misshapen_tensors_are_named_together(published):
    def change(tensors):
        del tensors[BIAS]
        tensors["mlp.9.weight"] = torch.zeros(2)
        tensors["mlp.0.bias"] = torch.zeros(3)

    edit(published, change)
    message = refusal(published)
    assert f"{BIAS}: missing" in message
    assert "mlp.9.weight: extra" in message
    assert "mlp.0.bias: has shape [3], the model needs [128]" in message


def test_long_lists_are_cut_with_a_count(published):
    edit(published, lambda tensors: {BIAS: tensors[BIAS]})
    message = refusal(published)
    assert message.count(": missing") == 20
    assert "and 26 more" in message  # 48 names, one tied, one present: 46 missing


def test_a_truncated_file_names_the_tensors_that_are_cut(published):
    path = published / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    message = refusal(published)
    assert "model.safetensors: truncated" in message
    with open(path, "rb") as file:
        header = json.loads(file.read(8 + int.from_bytes(path.read_bytes()[:8], "little"))[8:])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    assert last in message


@pytest.mark.parametrize("content", [b"", b"\xff" * 7, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_no_safetensors_is_named(content, published):
    (published / "model.safetensors").write_bytes(content)
    assert "model.safetensors: cannot be read as safetensors" in refusal(published)


def test_whole_numbers_where_weights_belong_are_refused(published):
    edit(published, lambda tensors: tensors | {BIAS: torch.zeros(48, dtype=torch.int32)})
    assert f"{BIAS}: is torch.int32" in refusal(published)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_an_error(published):
    edit(published, lambda tensors: tensors | {HEAD: tensors[EMBEDDING] + 1})
    assert f"{HEAD}: differs from {EMBEDDING}" in refusal(published)


def test_a_head_that_equals_the_embedding_and_one_stored_alone_both_load(pipeline, published):
    edit(published, lambda tensors: tensors | {HEAD: tensors[EMBEDDING].clone()})
    assert_same_weights(pipeline, Pipeline.from_pretrained(published))

    def head_only(tensors):
        del tensors[EMBEDDING]

    edit(published, head_only)
    back = Pipeline.from_pretrained(published)
    assert_same_weights(pipeline, back)
    assert back.model.language_model.tied


def test_an_untied_configuration_needs_a_head(published):
    config = json.loads((published / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = False
    (published / "config.json").write_text(json.dumps(config))
    assert f"{HEAD}: missing" in refusal(published)


def test_stored_rotary_frequencies_of_old_checkpoints_are_passed_over(pipeline, published):
    name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(published, lambda tensors: tensors | {name: torch.zeros(8)})
    assert_same_weights(pipeline, Pipeline.from_pretrained(published))


def test_a_refused_checkpoint_leaves_the_model_untouched(pipeline, published):
    edit(published, lambda tensors: tensors | {BIAS: torch.zeros(1)})
    model = pipeline.meta_model()
    with pytest.raises(CheckpointError):
        load_weights(model, published, device="cpu", dtype=torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())


# ---------------------------------------------------------------- indexes


def test_a_shard_that_is_absent_is_an_error_before_any_weight_is_read(published):
    sharded(published)
    (published / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        stored_plan(published)


def test_tensors_that_index_and_shards_do_not_agree_on_are_named(published):
    sharded(published)
    path = published / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, *_, last = index["weight_map"]
    index["weight_map"][last] = index["weight_map"][first]
    path.write_text(json.dumps(index))
    message = refusal(published)
    assert f"{last}: in model-00002-of-00002.safetensors, but the index does not place it there" in message
    assert f"{last}: the index places it in model-00001-of-00002.safetensors" in message
    assert f"{last}: missing" not in message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 3, "a\0b"])
def test_an_index_cannot_lead_out_of_its_folder(name, published):
    index = {"weight_map": {BIAS: name}}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        stored_plan(published)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 100_000, '{"weight_map": {}}'])
def test_an_index_that_is_none_is_an_error(text, published):
    (published / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="index"):
        stored_plan(published)


# ---------------------------------------------------------------- nothing is run


class Planted:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["pickle", "torch", "old torch"])
def test_a_planted_pickle_is_refused_and_not_run(writer, published, tmp_path):
    (published / "model.safetensors").unlink()
    path, trap = published / "pytorch_model.bin", tmp_path / "run"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Planted(trap)))
    else:
        torch.save({BIAS: Planted(trap)}, path, _use_new_zipfile_serialization=writer == "torch")
    message = refusal(published)
    assert "pytorch_model.bin" in message
    assert "weights-only" in message
    assert not trap.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.zeros(1)}, torch.zeros(3)])
def test_a_bin_that_holds_no_tensors_by_name_is_refused(content, published):
    (published / "model.safetensors").unlink()
    torch.save(content, published / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(published)


def test_a_truncated_bin_is_named(published):
    path = as_bin(published) / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert "pytorch_model.bin: torch's weights-only reader refuses it" in refusal(published)


# ---------------------------------------------------------------- integrity


def test_one_flipped_bit_in_the_weights_is_found(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "model.safetensors: damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_changed_or_absent_side_file_is_found(name, folder):
    (folder / name).write_text((folder / name).read_text() + " ")
    assert f"{name}: damaged" in refusal(folder)


def test_an_edited_manifest_is_found_and_says_how_to_change_options(folder):
    text = (folder / "andes.json").read_text()
    (folder / "andes.json").write_text(text.replace('"preset": "tiny"', '"preset": "large"', 1))
    with pytest.raises(CheckpointError, match="plugins=") as error:
        Pipeline.from_pretrained(folder)
    assert "damaged or edited" in str(error.value)


def test_a_manifest_of_a_later_format_says_upgrade(folder):
    manifest = json.loads((folder / "andes.json").read_text()) | {"format": 99}
    (folder / "andes.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="upgrade andes-sdk"):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("make", ["absent", "file", "empty", "unknown"])
def test_what_is_no_checkpoint_is_refused_with_the_reason(make, tmp_path):
    path = tmp_path / "x"
    if make == "file":
        path.write_text("x")
    elif make != "absent":
        path.mkdir()
    if make == "unknown":
        (path / "config.json").write_text('{"model_type": "andesvl-aimv2-qwen2"}')
    reason = {"absent": "no such", "file": "is a file", "empty": "is no checkpoint", "unknown": "did you mean"}
    with pytest.raises(CheckpointError, match=reason[make]):
        Pipeline.from_pretrained(path)
    with pytest.raises(CheckpointError, match=reason[make]):
        Pipeline.from_plugins(TINY, weights=path)


# ---------------------------------------------------------------- the plan


@frozen(eq=False, kw_only=True)
class Watcher:
    """A plugin object of the tests."""

    contract = "1.1"
    level: int = 0

    @hookimpl
    def andes_event(self, event: Event) -> None:
        return None


def test_more_plugins_join_the_checkpoints(folder):
    watcher = Watcher(level=3)
    plan, objects = extended(stored_plan(folder), [{"qwen3": {"thinking": True}}, "sft", watcher])
    assert plan.names == ("aimv2", "mlp", "qwen3", "sft", "watcher")
    assert dict(plan.plugins[2].options) == {"preset": "tiny", "thinking": True}
    assert objects == (watcher,)
    back = Pipeline.from_pretrained(folder, plugins=[{"qwen3": {"thinking": True}}, "sft", watcher])
    assert back.tokenizer.thinking
    assert back.plan.names == plan.names


def test_a_checkpoint_saved_with_an_object_asks_for_it(tmp_path):
    folder = Pipeline.from_plugins([*TINY, Watcher(level=3)]).save_pretrained(tmp_path / "model")
    with pytest.raises(PlanError, match="watcher"):
        Pipeline.from_pretrained(folder)
    assert Pipeline.from_pretrained(folder, plugins=[Watcher()]).plan.names[-1] == "watcher"


@pytest.mark.parametrize("plugins", [["sft", "sft"], [{"a": {}, "b": {}}], "sft", ["no-such-plugin"]])
def test_plugins_that_are_none_are_refused(plugins, folder):
    with pytest.raises((AssemblyError, PlanError)):
        Pipeline.from_pretrained(folder, plugins=plugins)


def test_weights_of_another_size_do_not_load(folder):
    other = [{"aimv2": {"preset": "tiny", "config": {"hidden_size": 64}}}, *TINY[1:]]
    with pytest.raises(CheckpointError, match="do not fit"):
        _ = Pipeline.from_plugins(other, weights=folder).model


# ---------------------------------------------------------------- whole or not at all


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_failure_midway_keeps_the_old_checkpoint_and_leaves_nothing_behind(pipeline, folder, monkeypatch):
    before = contents(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    for step in ("storage.checkpoint.saving.write_weights", "storage.checkpoint.saving.sha256", "files._sync"):
        with monkeypatch.context() as patch:
            patch.setattr(f"andes_sdk.{step}", full)
            with pytest.raises(CheckpointError, match="No space left"):
                pipeline.save_pretrained(folder)
        assert contents(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failing_rename_puts_the_old_checkpoint_back(pipeline, folder, monkeypatch):
    before, replace = contents(folder), os.replace

    def second_fails(source, target):
        if ".partial-" in str(source) and Path(target) == folder:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("andes_sdk.files.os.replace", second_fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        pipeline.save_pretrained(folder)
    assert contents(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_with_other_things_in_it_is_never_replaced(pipeline, tmp_path):
    target = tmp_path / "work"
    target.mkdir()
    assert pipeline.save_pretrained(target).is_dir()  # an empty one is taken
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="is no checkpoint"):
            pipeline.save_pretrained(path)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


PROBE = """
from attrs import field, frozen
from andes_sdk import hookimpl

@frozen(eq=False, kw_only=True)
class Probe:
    contract = "1.1"
    level: int = 0
    where: str = field(default="", metadata={"local": True})

    @hookimpl
    def andes_event(self, event):
        return None
"""


def test_options_that_hold_on_one_machine_only_are_left_out_of_the_saved_plan(distribution, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(distribution("andes-probe", {"probe": "local_probe:Probe"}, {"local_probe.py": PROBE}))
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})  # stevedore looks once a process otherwise
    made = Pipeline.from_plugins([*TINY, {"probe": {"level": 2, "where": "/only/here"}}])
    plan = stored_plan(made.save_pretrained(tmp_path / "model"))
    assert plan.plugins[-1].options == {"level": 2}
    assert made.plan.plugins[-1].options == {"level": 2, "where": "/only/here"}


def test_unknown_layouts_and_dtypes_are_refused(pipeline, tmp_path):
    with pytest.raises(ConfigError, match="andes"):
        pipeline.save_pretrained(tmp_path / "x", layout="gguf")
    with pytest.raises(ConfigError, match="bfloat16"):
        pipeline.save_pretrained(tmp_path / "x", dtype="bfloat8")
    assert not (tmp_path / "x").exists()
