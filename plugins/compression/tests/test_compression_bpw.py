"""`andes bpw` and `andes pack`: every byte counted, and the same before packing as after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_compression.bpw import of_artefact, of_model
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_packing import Artefact
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.set_num_threads(1)
    return Pipeline.from_plugins(list(TINY), image={"min_size": 28})


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline.save_pretrained(tmp_path_factory.mktemp("models") / "tiny", dtype="float16")


def andes(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def loads(*arguments: object) -> dict[str, Any]:
    return json.loads(andes(*arguments, "--json").stdout)


def test_a_member_of_the_family_is_counted_on_shapes_alone() -> None:
    facts = loads("bpw", "andesvl-0.6b", "--format", "nm14_w4", "--head", "w4_g32", "--vision", "w8")
    groups = {g["group"]: g for g in facts["groups"]}
    # Qwen3-0.6B: 28 layers of q, o (2048 x 1024), k, v (1024 x 1024), gate, up, down (3072 x 1024)
    body = 28 * 1024 * (2048 * 2 + 1024 * 2 + 3072 * 3)
    embedding = 151936 * 1024
    vectors = 28 * (2 * 1024 + 2 * 128) + 1024
    assert [groups[n]["weights"] for n in ("body", "embedding", "vectors")] == [body, embedding, vectors]
    assert [groups[n]["type_bpw"]["disk"] for n in ("body", "embedding", "vectors")] == [1.625, 4.5, 32.0]
    # everything is a multiple of its group and of 16 rows, so nothing is padded
    language = body * 1.625 + embedding * 4.5 + vectors * 32
    assert facts["language_model"]["bytes"]["disk"] * 8 == language
    whole = sum(g["bytes"]["disk"] for g in facts["groups"])
    assert facts["weights"] == sum(g["weights"] for g in facts["groups"]) == 695_069_952
    assert facts["type_bpw"]["disk"] == whole * 8 / facts["weights"]
    # header and alignment: less than a thousandth of the file
    assert whole < facts["bytes"]["disk"] < whole * 1.001
    assert facts["model_bpw"]["disk"] == facts["bytes"]["disk"] * 8 / facts["weights"]
    assert facts["model_bpw"]["memory"] <= facts["model_bpw"]["disk"]


@pytest.mark.parametrize("form", ["f16", "w4_g32", "nm28_w4"])
def test_a_projection_counts_what_packing_then_writes(pipeline: Pipeline, tmp_path: Path, form: str) -> None:
    recipe = default_recipe(pipeline.model, form)
    before = of_model(pipeline.meta_model(), pipeline.plan, recipe)
    artefact = pack_model(pipeline.model, recipe, tmp_path / "a.andes", plan=pipeline.plan)
    after = of_artefact(artefact)
    assert before.rows == after.rows
    assert before.memory == after.memory
    assert after.weights == pipeline.model.parameter_count()
    # the file is the model and the tokenizer, each file of which ends on 64 bytes
    rest = artefact.path.stat().st_size - after.disk
    assert after.files is not None
    assert after.files <= rest < after.files + 64 * len(artefact.header.files)
    # its header also lists the tokenizer's files
    assert before.disk <= after.disk < before.disk + 300 * len(artefact.header.files)
    # tiny matrices are mostly padding, and it is counted: 48 columns fill 128
    body = next(r for r in after.rows if r.group == "body").to_dict()["type_bpw"]["disk"]
    assert body >= {"f16": 16.0, "w4_g32": 4.5 * 64 / 48 * 0.9, "nm28_w4": 1.75 * 128 / 96}[form]


def test_a_checkpoint_is_counted_as_it_is(pipeline: Pipeline, folder: Path) -> None:
    facts = loads("bpw", folder)
    count = pipeline.model.parameter_count()
    assert facts["weights"] == count
    assert facts["type_bpw"] == {"disk": 16.0, "memory": 16.0}
    assert facts["bytes"]["disk"] == (folder / "model.safetensors").stat().st_size
    assert facts["bytes"]["memory"] == 2 * count
    assert {f for g in facts["groups"] for f in g["formats"]} == {"float16"}


def test_what_pack_reports_is_what_bpw_counts_in_text_and_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.andes"
    made = loads("pack", "--model", folder, "--format", "nm14_w4", "--head", "w4_g32", "--vision", "w8", "--out", out)
    counted = loads("bpw", out)
    assert {k: made[k] for k in counted if k != "model"} == {k: v for k, v in counted.items() if k != "model"}
    assert made["file_bytes"] == out.stat().st_size
    assert made["digest"] == Artefact.open(out, verify=True).digest
    assert made["seconds"] > 0
    text = andes("bpw", out).stdout
    for group in counted["groups"]:
        assert f"{group['type_bpw']['disk']:.3f}" in text
    assert f"{counted['model_bpw']['disk']:.3f}" in text
    assert "tokenizer" in text


def test_pack_prints_a_table_and_obeys_patterns(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.andes"
    text = andes("pack", "-m", folder, "-f", "w4_g32", "--set", "*.q_proj.*=w8", "--no-search", "--out", out).stdout
    assert "model BPW" in text
    assert "packed in" in text
    chosen = {n: e.format for n, e in Artefact.open(out).tensors.items()}
    assert {chosen[n] for n in chosen if "q_proj" in n} == {"w8"}
    assert {chosen[n] for n in chosen if "k_proj" in n} == {"w4_g32"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["bpw", "andesvl-0.6b"], "pass --format"),
        (["bpw", "andesvl-7b", "--format", "w8"], "andesvl-"),
        (["bpw", "nowhere"], "no model that can be opened"),
        (["bpw", "FOLDER", "--format", "nm14w4"], "did you mean"),
        (["bpw", "FOLDER", "--format", "w8", "--set", "q_proj"], "pattern=format"),
        (["bpw", "FOLDER", "--format", "w8", "--set", "nothing=w8"], "matches no matrix"),
        (["pack", "--model", "FOLDER", "--format", "nm14w4", "--out", "x.andes"], "did you mean"),
        (["pack", "--model", "nowhere", "--format", "w8", "--out", "x.andes"], "no model that can be opened"),
    ],
)
def test_mistakes_are_told_without_a_traceback(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = andes(*(folder if a == "FOLDER" else a for a in arguments), code=1)
    assert why in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_options_that_make_no_sense_together_are_usage_errors(folder: Path, tmp_path: Path) -> None:
    andes("bpw", folder, "--head", "w8", code=2)
    out = tmp_path / "tiny.andes"
    andes("pack", "-m", folder, "-f", "w8", "--out", out)
    assert "has its formats already" in andes("bpw", out, "-f", "w8", code=1).stderr
