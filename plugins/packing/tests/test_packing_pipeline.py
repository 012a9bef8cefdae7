"""Pipelines opened from an artefact: with the plan's plugins, and on backends that run packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact
from andes_packing.formats import Format, Grid, Integer
from attrs import frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, SessionError
from andes_sdk.runtime.torch_backend import TorchBackend
from andes_sdk.testing.material import conversation
from andes_sdk.types import Compiled

PARTS: list[Any] = [{"siglip2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
W2 = Integer(name="w2_g64", group=64, grid=Grid(bits=2, low=-2, high=1, factors=(0.6, 0.8, 1.0)))


@frozen(eq=False, kw_only=True)
class Thrifty:
    """A format, and a backend that leaves every weight in the file."""

    contract = "1.1"

    @hookimpl
    def andes_formats(self) -> Sequence[Format]:
        return [W2]

    @hookimpl
    def andes_backends(self) -> Sequence[Any]:
        return [FromFile()]


@frozen
class FromFile(TorchBackend):
    """torch on modules that read a weight when they use it."""

    name: str = "from-file"

    def open(self, artefact: Artefact, model: Any, *, device: str, dtype: str, taps: Any = ()) -> Compiled:
        assert "language_model.lm_head.weight" in artefact.header.tied
        return self.compile(model, device=device, dtype=dtype, taps=taps)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipe = Pipeline.from_plugins([*PARTS, Thrifty()], seed=1)
    recipe = default_recipe(pipe.model, "w4_g32", head="w8", vision="w8") | {"*.v_proj.weight": "w2_g64"}
    file = tmp_path_factory.mktemp("artefact") / "model.andes"
    return pack_model(pipe.model, recipe, file, plan=pipe.plan, formats=[W2]).path


def test_modules_that_read_from_the_file_compute_what_filled_ones_do(path: Path) -> None:
    lazy = Pipeline.from_pretrained(path, plugins=[Thrifty()], backend="from-file")
    filled = Pipeline.from_pretrained(path, plugins=[Thrifty()])
    inputs = filled.prepare(conversation(0))
    assert torch.equal(lazy.session().prefill(inputs), filled.session().prefill(inputs))
    assert sum(p.numel() for p in lazy.model.parameters() if p.ndim > 1) == 0
    assert filled.model.parameter_count() == lazy.meta_model().parameter_count()
    assert lazy.processor.prepare(conversation(0)).ids.tolist() == inputs.ids.tolist()


def test_formats_come_from_the_plans_plugins_or_from_the_caller(path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used") as caught:
        Artefact.open(path)
    assert "w2_g64" in caught.value.why
    assert "w2_g64" in Pipeline.from_pretrained(path, plugins=[Thrifty()]).artefact.formats  # type: ignore[union-attr]
    with pytest.raises(Exception, match="thrifty"):
        Pipeline.from_pretrained(path)  # the plan names an object that nobody gave


def test_explain_names_the_file(path: Path) -> None:
    rows = Pipeline.from_pretrained(path, plugins=[Thrifty()]).explain().rows
    assert next(r.value for r in rows if r.part == "weights") == str(path)


def test_a_packed_pipeline_is_saved_only_once_it_is_unpacked(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="saved as a checkpoint"):
        Pipeline.from_pretrained(path, plugins=[Thrifty()], backend="from-file").save_pretrained(tmp_path / "a")
    filled = Pipeline.from_pretrained(path, plugins=[Thrifty()])
    folder = filled.save_pretrained(tmp_path / "b")
    again = Pipeline.from_pretrained(folder, plugins=[Thrifty()])
    ids = filled.prepare("hello")
    assert torch.equal(again.session().prefill(ids), filled.session().prefill(ids))


def test_checksums_are_compared_when_asked(path: Path, tmp_path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at] ^= 1
    (tmp_path / "bad.andes").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        Pipeline.from_pretrained(tmp_path / "bad.andes", plugins=[Thrifty()], verify=True)


BAD = [("nmba", "no backend 'nmba'"), ({}, "expected a name"), ({"a": {}, "b": {}}, "expected a name")]


@pytest.mark.parametrize(("backend", "words"), BAD)
def test_a_backend_that_does_not_exist_is_refused(backend: Any, words: str, path: Path) -> None:
    with pytest.raises((AssemblyError, ConfigError)) as caught:
        Pipeline.from_pretrained(path, plugins=[Thrifty()], backend=backend)
    assert words in str(caught.value)


def test_a_checkpoint_takes_a_backend_and_its_options(tmp_path: Path) -> None:
    source = Pipeline.from_plugins(PARTS, seed=1)
    folder = source.save_pretrained(tmp_path / "model")
    pipe = Pipeline.from_pretrained(folder, plugins=[Thrifty()], backend="from-file")
    assert pipe.plan.backend == "from-file"
    ids = source.prepare("hello")
    assert torch.equal(pipe.session().prefill(ids), source.session().prefill(ids))


def test_a_reference_runs_with_torch(path: Path, tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins(PARTS, seed=1)
    file = pack_model(pipe.model, default_recipe(pipe.model, "w8"), tmp_path / "a.andes", plan=pipe.plan).path
    assert Pipeline.from_pretrained(file, backend="torch").plan.backend == "torch"
    with pytest.raises(SessionError, match="no adapter"):
        Pipeline.from_pretrained(file, backend="torch").session().adapter = "x"
