"""`Pipeline.from_pretrained` on each kind of source, and on what is none."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.cli.loading import open_pipeline
from andes_sdk.errors import AndesError, AssemblyError, CheckpointError, PluginBroken
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.storage.hub import WANTED, download

PARTS = [{"siglip2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins(PARTS, seed=5)


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.save_pretrained(tmp_path_factory.mktemp("stored") / "ours")


@pytest.fixture(scope="module")
def tiny_gguf() -> Path:
    data = pytest.importorskip("andes_gguf").__file__
    assert data is not None
    return Path(data).parent / "data" / "tiny.gguf"


def same(one: Pipeline, other: Pipeline) -> bool:
    state = other.model.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.model.state_dict().items())


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_folder_of_ours(as_path: Callable[[Path], Any], pipeline: Pipeline, folder: Path) -> None:
    opened = Pipeline.from_pretrained(as_path(folder))
    assert same(pipeline, opened)
    assert (opened.weights, opened.artefact) == (folder, None)


def test_a_published_folder(pipeline: Pipeline, tmp_path: Path) -> None:
    published = pipeline.save_pretrained(tmp_path / "published", layout="published")
    assert not (published / "andes.json").exists()
    assert same(pipeline, Pipeline.from_pretrained(published))


@pytest.mark.parametrize("name", ["model.andes", "model", "model.gguf"])
def test_a_packed_file_under_any_name(name: str, pipeline: Pipeline, tmp_path: Path) -> None:
    file = pack_model(pipeline.model, {"*": "f16"}, tmp_path / name, plan=pipeline.plan).path
    opened = Pipeline.from_pretrained(file)
    assert opened.artefact is not None
    assert (opened.artefact.path, opened.weights) == (file, None)
    rounded = pipeline.model.state_dict()["mlp.0.weight"].half().float()
    assert torch.equal(opened.model.state_dict()["mlp.0.weight"], rounded)


def test_a_gguf_file_with_encoder_and_projector_of_the_caller(tiny_gguf: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_gguf, tmp_path / "Tiny.GGUF")
    opened = Pipeline.from_pretrained(tmp_path / "Tiny.GGUF", plugins=PARTS[:2])
    direct = Pipeline.from_plugins([*PARTS[:2], {"gguf": {"path": str(tiny_gguf)}}])
    assert opened.plan.owner("andes_language_model") == "gguf"
    assert same(direct, opened)
    assert len(opened.generate("hello").tokens) >= 1


def test_a_gguf_file_alone_says_which_slots_are_empty(tiny_gguf: Path) -> None:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_pretrained(tiny_gguf)
    first, second = map(str, caught.value.problems)
    assert "'vision_encoder' has no owner" in first
    assert "'projector' has no owner" in second


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache with one model of two revisions in it, and no network."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    cache = tmp_path / "hub"
    model = cache / "models--ours--tiny"
    shutil.copytree(folder, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    for revision in ("main", "v1.0"):
        (model / "refs" / revision).write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return model


@pytest.mark.parametrize("source", ["ours/tiny", "ours/tiny@v1.0", f"ours/tiny@{COMMIT}"])
def test_a_model_in_the_hubs_cache_needs_no_network(source: str, pipeline: Pipeline, hub: Path) -> None:
    opened = Pipeline.from_pretrained(source)
    assert opened.weights == hub / "snapshots" / COMMIT
    assert same(pipeline, opened)


@pytest.mark.parametrize("source", ["ours/tiny@v2.0", "ours/other"])
def test_a_model_that_is_not_there_offline_says_why(source: str, hub: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be fetched") as caught:
        Pipeline.from_pretrained(source)
    assert str(caught.value).startswith(source)
    assert "HF_HUB_OFFLINE" in caught.value.fix


def test_a_folder_that_is_there_comes_before_the_hub(
    folder: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "ours" / "tiny")
    assert Pipeline.from_pretrained("ours/tiny").weights == Path("ours/tiny")


def standing_in(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=answer))  # type: ignore[arg-type]


def test_only_weights_configuration_and_tokenizer_are_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def answer(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    standing_in(monkeypatch, answer)
    Pipeline.from_pretrained("ours/tiny@refs/pr/3")
    assert asked == [
        ("ours/tiny", {"revision": "refs/pr/3", "allow_patterns": list(WANTED), "local_files_only": False})
    ]
    code = ("modeling_x.py", "pytorch_model.bin", "weights.pt", "model.gguf", "model.onnx", "x.pkl", "x.h5")
    assert not [name for name in code if any(Path(name).match(pattern) for pattern in WANTED)]


def test_no_network_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(name: str, **options: Any) -> str:
        raise ConnectionError("Max retries exceeded\nmore")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    standing_in(monkeypatch, answer)
    with pytest.raises(CheckpointError, match="cannot be fetched") as caught:
        download("ours/tiny")
    assert "ConnectionError: Max retries exceeded" in caught.value.why
    assert "more" not in caught.value.why
    assert "network" in caught.value.fix


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(AndesError, match=r"andes-sdk\[hub\]"):
        Pipeline.from_pretrained("ours/tiny")


# ---------------------------------------------------------------- none of them


@pytest.mark.parametrize("source", ["nonsense", "a/b/c", "no such.andes", "nowhere.gguf", "owner/name@", "", "x.txt"])
def test_nonsense_says_what_it_may_be(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(CheckpointError) as caught:
        Pipeline.from_pretrained(source)
    said = str(caught.value)
    if source:  # the empty text is the folder itself
        assert "is no model that can be opened" in said
        for kind in ("folder", ".andes", "owner/name[@revision]"):
            assert kind in said
    else:
        assert "is no checkpoint" in said


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize("kind", ["folder", "packed", "hub"])
def test_commands_take_the_same_texts(kind: str, pipeline: Pipeline, folder: Path, hub: Path, tmp_path: Path) -> None:
    packed = tmp_path / "model.andes"
    pack_model(pipeline.model, default_recipe(pipeline.model, "f16"), packed, plan=pipeline.plan)
    source = {"folder": str(folder), "packed": str(packed), "hub": "ours/tiny"}[kind]
    ran = CliRunner().invoke(app, ["explain", "--model", source, "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == json.loads(json.dumps(Pipeline.from_pretrained(source).explain().to_dict()))
    options = GenerationOptions(max_tokens=3)
    wanted = Pipeline.from_pretrained(source).generate("hello", options)
    assert open_pipeline(source, None).generate("hello", options).tokens == wanted.tokens


def test_an_opener_that_is_broken_stops_no_other_kind_of_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from andes_sdk.storage import opening

    load = opening.load_extension

    def broken(group: str, name: str) -> object:
        if name == "gguf":
            raise PluginBroken("cannot be imported", who="gguf")
        return load(group, name)

    monkeypatch.setattr(opening, "load_extension", broken)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(PluginBroken, match="cannot be imported"):
        opening.open_stored(tmp_path / "x.gguf")
    (tmp_path / "x.andes").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is no artefact"):
        opening.open_stored(tmp_path / "x.andes")
