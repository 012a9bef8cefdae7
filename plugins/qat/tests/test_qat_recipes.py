"""`andes compress MODEL --recipe sub2`: from a folder and data to a packed file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_packing import Artefact
from andes_qat import QAT
from andes_qat.record import read_record
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.storage.checkpoint import stored_tensors

DATA = str(QAT.testing["data"])
MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return Path(Pipeline.from_plugins(MODEL, seed=4).save_pretrained(tmp_path_factory.mktemp("m") / "model"))


def test_a_recipe_trains_and_packs_what_it_trained(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.andes"
    command = ["compress", str(model), "--recipe", "sub2", "--data", DATA, "--steps", "5", "--out", str(out), "--json"]
    narrow = CliRunner().invoke(app, command)  # 48 columns are padded to 128
    shown = " ".join((narrow.output + str(narrow.stderr)).replace("│", " ").split())
    assert "1.8 were asked for" in shown
    assert "rows of 48 columns are padded" in shown
    assert "set body = 'nm14_w2' without roles, which takes 2.60: no grid takes fewer; and bits = 2.6" in shown
    assert not (tmp_path / "m.andes.run" / "model").exists()
    command += ["-o", "bits=0"]
    # data without pictures: encoder and projector only get their grids
    said = CliRunner().invoke(app, [*command, "-o", "rate=1e-3"])
    assert said.exit_code == 0, said.output
    facts = json.loads(said.stdout)
    assert facts["report"]["source"] == "trained"
    record, artefact = read_record(tmp_path / "m.andes.run" / "qat"), Artefact.open(out, verify=True)
    assert artefact.numbers == facts["numbers"] == record.numbers
    formats = {e.format for n, e in artefact.header.tensors.items() if ".layers." in n and len(e.shape) == 2}
    assert {"ternary34_g128", "w4_g128", "w8"} >= formats
    outputs = [e.format for n, e in artefact.header.tensors.items() if n.startswith("language") and ".o_proj." in n]
    assert set(outputs) == {"w4_g128"}
    turns = [{"role": "user", "content": "?"}]
    pipes = [Pipeline.from_pretrained(out, backend=backend) for backend in ("torch", "numba")]
    one, two = (pipe.session().prefill(pipe.prepare(turns)) for pipe in pipes)
    assert float((one - two).abs().max() / one.abs().max()) < 0.05  # the fast backend runs what the recipe makes
    packed = stored_tensors(Pipeline.from_pretrained(out, backend="torch").model)
    trained = stored_tensors(Pipeline.from_pretrained(tmp_path / "m.andes.run" / "model").model)
    assert all(torch.equal(packed[name].float(), trained[name].float()) for name in record.codes)
    again = CliRunner().invoke(app, [*command, "-o", "rate=1e-3"])  # the run is done: it is packed again
    assert json.loads(again.stdout)["numbers"] == facts["numbers"]
    other = Pipeline.from_plugins(MODEL, seed=5).save_pretrained(tmp_path / "other")
    before = out.read_bytes()
    refused = CliRunner().invoke(app, ["compress", str(other), *command[2:], "-o", "rate=1e-3"])
    assert refused.exit_code != 0
    assert "another recipe" in refused.output + str(refused.stderr)
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--recipe", "sub3", "--data", DATA], "no recipe 'sub3'"),
        (["--recipe", "sub2"], "needs data"),
        (["qat", "-p", "qat", "-o", "qat.bits=5"], "set body = 'ternary_g128' without roles"),
        (["qat", "-p", "qat", "-o", "body=w8"], "it takes codes; options of its plugin go by PLUGIN.OPTION"),
        (["--recipe", "sub2", "--data", DATA, "-o", "body=w5"], "no grid 'w5'"),
        (["--recipe", "sub2", "--data", DATA, "--head", "w8"], "a recipe has its formats"),
        (["qat", "--recipe", "sub2"], "one of them"),
        (["gptq", "-p", "qat", "--data", DATA], "--data: for --recipe alone"),
        (["qat", "-p", "qat", "--steps", "5", "--run", "r"], "--steps, --run: for --recipe alone"),
        ([], "one of them"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    model: Path, tmp_path: Path, arguments: list[str], what: str
) -> None:
    said = CliRunner().invoke(app, ["compress", str(model), *arguments, "--out", str(tmp_path / "m.andes")])
    assert said.exit_code != 0
    shown = " ".join((said.output + str(said.stderr)).replace("│", " ").split())
    assert what in shown
    assert not (tmp_path / "m.andes").exists()
    assert not list(tmp_path.glob("m.andes.run/model"))
