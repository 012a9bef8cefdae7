import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_numba.machine import threading_layer

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable, CheckpointError, ConfigError
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.material import conversation
from andes_sdk.types import Inputs, PackedBackend

# the picture encoder's positions are read without a module call, its patches with one: both must work from the file
MODEL = [{"siglip2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
EXACT = {"numba": {"activations": "exact", "kv": "f32"}}


@pytest.fixture(scope="module")
def source():
    pipe = Pipeline.from_plugins(MODEL, seed=1)
    with torch.no_grad():
        for weight in pipe.model.language_model.parameters():
            weight.mul_(3 if weight.ndim == 2 else 1)
    return pipe


def packed(source, path, body="w4_g32", head="w4_g32", vision="w8", **changes):
    # formats as in test_numba_session.py, so that their machine code is compiled once
    recipe = default_recipe(source.model, body, head=head, vision=vision) | changes
    return pack_model(source.model, recipe, path, plan=source.plan).path


@pytest.fixture(scope="module")
def path(source, tmp_path_factory):
    return packed(source, tmp_path_factory.mktemp("packed") / "model.andes")


def test_an_artefact_gives_the_logits_and_answers_of_its_dequantised_weights(path):
    reference, numba = Pipeline.from_pretrained(path), Pipeline.from_pretrained(path, backend=EXACT)
    assert isinstance(numba.pick("backends", "numba"), PackedBackend)
    logits, wanted = (p.session().prefill(p.prepare(conversation(0))) for p in (numba, reference))
    # both add float32 numbers, in another order
    assert float((logits - wanted).abs().max() / wanted.abs().max()) < 1e-4
    options = GenerationOptions(max_tokens=16)
    assert numba.generate(conversation(0), options).tokens == reference.generate(conversation(0), options).tokens


def test_packing_anew_gives_the_bits_of_the_artefact(source, path):
    options = {"numba": {"format": "w4_g32", "head": "w4_g32"}}
    ids = torch.arange(20) + 100
    opened = Pipeline.from_pretrained(path, backend="numba")
    anew = Pipeline.from_plugins([*MODEL, options], backend="numba")
    # the embedding, which the artefact has in w4_g32, is float there
    anew.model.load_state_dict(source.model.state_dict())
    stored = torch.from_numpy(opened.artefact.array("language_model.lm_head.weight"))
    anew.compiled.model.language_model.model.embed_tokens.weight.data = stored
    assert torch.equal(opened.session().prefill(Inputs(ids)), anew.session().prefill(Inputs(ids)))


def test_weights_are_used_where_they_lie(path):
    pipe = Pipeline.from_pretrained(path, backend="numba")
    data = pipe.artefact.data
    start, end = data.ctypes.data, data.ctypes.data + data.nbytes
    weights = pipe.compiled.packed.weights
    addresses = [*weights.products[:, :, 0].ravel(), weights.head[0, 0]]
    assert all(start <= a < end for a in addresses)
    assert not any(p.numel() for p in pipe.model.parameters() if p.ndim > 1)
    table = pipe.model.language_model.model.embed_tokens
    ids = torch.tensor([[3, 500], [3, 17]])
    assert torch.equal(table(ids), table.weight[ids])


@pytest.mark.slow
def test_roles_may_have_formats_of_their_own(source, tmp_path):
    changes = {"*.down_proj.weight": "w8", "*.o_proj.weight": "nm14_w4"}
    file = packed(source, tmp_path / "model.andes", **changes)
    numba = Pipeline.from_pretrained(file, backend=EXACT)
    ids = torch.arange(20) + 100
    logits, wanted = (p.session().prefill(Inputs(ids)) for p in (numba, Pipeline.from_pretrained(file)))
    assert float((logits - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert numba.compiled.facts()["format"].startswith(
        "q-k-v w4_g32, output nm14_w4, gate-up w4_g32, down w8, head w4_g32"
    )


@pytest.mark.parametrize("pattern", ["*.v_proj.weight", "*.layers.1.mlp.down_proj.weight"])
def test_formats_that_have_to_be_one_are_refused_by_name(pattern, source, tmp_path):
    file = packed(source, tmp_path / "model.andes", **{pattern: "w8"})
    with pytest.raises(BackendUnavailable, match="cannot run model") as caught:
        _ = Pipeline.from_pretrained(file, backend="numba").compiled
    assert "w4_g32, w8, and need one format" in caught.value.why
    assert len(Pipeline.from_pretrained(file).session().prefill(Inputs(torch.tensor([5])))) == 512


def test_damage_is_refused_before_anything_runs(path, tmp_path):
    content = path.read_bytes()
    for name, bad in (("cut", content[:-100]), ("flipped", content[:200] + b"\xff" + content[201:])):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CheckpointError):
            Pipeline.from_pretrained(tmp_path / name, backend="numba")


def test_a_packed_model_is_not_saved_or_trained(path, tmp_path):
    pipe = Pipeline.from_pretrained(path, backend="numba")
    with pytest.raises(ConfigError, match="saved"):
        pipe.save_pretrained(tmp_path / "folder")
    with pytest.raises(ConfigError, match="trained"):
        pipe.train({}, tmp_path / "out")


def test_packing_in_memory_leaves_the_float_model_alone(source):
    before = {n: t.clone() for n, t in source.model.state_dict().items()}
    pipe = Pipeline.from_plugins([*MODEL, "numba"], backend="numba")
    pipe.pick("backends", "numba").compile(source.model, device="cpu", dtype="float32").session(pipe.policy)
    assert all(torch.equal(t, before[n]) for n, t in source.model.state_dict().items())


CHILD = """
import os, sys, torch
from andes_sdk import Pipeline
from andes_sdk.errors import SessionError
from andes_sdk.testing.material import conversation
pipe = Pipeline.from_pretrained(sys.argv[1], backend="numba")
if sys.argv[2] == "used":
    pipe.session().prefill(pipe.prepare(conversation(0)))
else:
    pipe.model
child = os.fork()
if not child:
    try:
        logits = pipe.session().prefill(pipe.prepare(conversation(0)))
    except SessionError as error:
        os._exit(3 if "forked" in str(error) and "spawn" in error.fix else 4)
    os._exit(0 if logits.isfinite().all() else 5)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
@pytest.mark.parametrize("when", ["used", "unused"])
def test_a_forked_child_is_told_instead_of_ended(path, when):
    run = subprocess.run([sys.executable, "-c", CHILD, str(path), when], capture_output=True, text=True, check=False)
    # TBB survives a fork, and so does what starts no threads before it
    assert run.returncode == (3 if when == "used" and threading_layer() == "omp" else 0), run.stderr


def test_the_machine_code_is_said_to_come_from_the_cache(path):
    code = (
        "import sys; from andes_sdk import Pipeline;"
        "pipe = Pipeline.from_pretrained(sys.argv[1], backend='numba');"
        "print(pipe.compiled.facts()['machine code']); pipe.session().extend([5]);"
        "print(pipe.compiled.facts()['machine code'])"
    )
    Pipeline.from_pretrained(path, backend="numba").session().extend([5])
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    before, after = run.stdout.splitlines()
    assert before == "not loaded yet"
    assert after.startswith("from the cache ")


def test_rows_of_an_embedding_are_those_of_the_whole_table(path):
    artefact = Pipeline.from_pretrained(path).artefact
    name = "language_model.model.embed_tokens.weight"
    index = np.array([511, 0, 16, 15, 16])
    assert np.array_equal(artefact.rows(name, index), artefact.array(name)[index])
