"""A packed file that changes under those who run it."""

import os
import shutil

import pytest
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
EXACT = {"numba": {"activations": "exact", "kv": "f32"}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two packed models of one size."""
    folder = tmp_path_factory.mktemp("packed")
    for seed in (1, 2):
        pipe = Pipeline.from_plugins(MODEL, seed=seed)
        pack_model(
            pipe.model, default_recipe(pipe.model, "w4_g32", head="w4_g32"), folder / f"{seed}.andes", plan=pipe.plan
        )
    return folder


@pytest.fixture
def path(files, tmp_path):
    return shutil.copy(files / "1.andes", tmp_path / "model.andes")


def truncated(path, files):
    os.truncate(path, 4096)


def overwritten(path, files):
    with open(files / "2.andes", "rb") as new, open(path, "wb") as old:  # as `cp` does
        shutil.copyfileobj(new, old)


def touched(path, files):
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


@pytest.mark.parametrize("change", [truncated, overwritten, touched])
@pytest.mark.parametrize("backend", [EXACT, "torch", "attached"])
def test_a9_a_packed_file_that_is_written_anew_ends_the_next_pass(path, files, change, backend, request):
    if backend == "attached":  # modules whose weights stay in the file
        numba = Pipeline.from_pretrained(path, backend=EXACT)
        numba.compiled  # noqa: B018
        run = lambda: numba.model.language_model.model.embed_tokens.weight  # noqa: E731
    else:
        pipe = Pipeline.from_pretrained(path, backend=backend)
        run = lambda: pipe.chat("hello", max_tokens=2)  # noqa: E731
    run()
    change(path, files)
    if backend == "torch":  # its weights were read
        run()
        return
    with pytest.raises(CheckpointError, match="changed while it was in use") as caught:
        run()
    assert str(path) in caught.value.who
    assert "renaming" in caught.value.fix


@pytest.mark.parametrize("backend", [EXACT, "torch"])
def test_a9_a_packed_file_may_be_replaced_by_another(path, files, tmp_path, backend):
    pipe = Pipeline.from_pretrained(path, backend=backend)
    before = pipe.chat("hello", max_tokens=4)
    shutil.copy(files / "2.andes", tmp_path / "new.andes")
    os.replace(tmp_path / "new.andes", path)
    assert pipe.chat("hello", max_tokens=4) == before
    os.unlink(path)
    assert pipe.chat("hello", max_tokens=4) == before


def test_a9_an_artefact_that_shrinks_while_it_is_opened_is_refused(path):
    artefact = Artefact.open(path)
    artefact.verify()
    os.truncate(path, os.path.getsize(path) - 64)
    with pytest.raises(CheckpointError, match="changed"):
        artefact.verify()
    with pytest.raises(CheckpointError, match="truncated"):
        Artefact.open(path)
