"""What is found before exporting: in models that were made worse on purpose."""

import json
from xml.etree import ElementTree

import pytest
import torch
from andes_dimensity.drawing import columns, svg
from andes_dimensity.lint import SURVIVES, inputs_seen, lint
from andes_dimensity.linting import app, bits_of, costs
from andes_dimensity.options import Options
from andes_dimensity.page import checked, heat, page
from typer.testing import CliRunner

OPTIONS = Options(rows=64, prompt=16)


def told(found, level):
    return {one.layer: one.what for one in found.findings if one.level == level}


def test_a_sound_model_has_notes_and_the_gelu_of_its_projector(pipe):
    found = lint(pipe, OPTIONS)
    assert found.fine
    assert told(found, "warning") == {"mlp": "exact GELU: the NPU approximates it"}
    assert "no trained input range" in told(found, "note")["language_model"]


def test_a_module_without_a_blueprint_is_an_error(pipe):
    pipe.model.vision_encoder.__dict__["blueprint"] = dict
    found = lint(pipe, OPTIONS)
    assert not found.fine
    assert found.lowered is None
    assert found.findings[0].level == "error"


def test_outliers_are_found_where_they_are(pipe):
    norm = pipe.model.language_model.model.layers[1].post_attention_layernorm
    with torch.no_grad():
        norm.weight[3] = 1e5
    warned = told(lint(pipe, OPTIONS), "warning")
    at = "language_model.model.layers.1.mlp."
    assert {f"{at}gate_proj", f"{at}up_proj"} <= set(warned)
    assert "language_model.model.layers.0.mlp.up_proj" not in warned
    assert inputs_seen(pipe)[f"{at}up_proj"] > SURVIVES


def test_four_bits_without_training_are_warned_of_where_they_lose(pipe):
    weight = pipe.model.language_model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(0))
        weight[:, 0] = 40.0
    warned = told(lint(pipe, Options(weights="w4", rows=64, prompt=16)), "warning")
    assert "rounding loses" in warned["model.layers.0.mlp.down_proj.weight"]


def test_bits_count_scales(pipe):
    lowered = lint(pipe, OPTIONS).lowered
    head = lowered.parts["text"].matrices["lm_head.weight"]
    assert bits_of(lowered, head=True) == pytest.approx(8 + 32 / head.codes.shape[1])
    table = costs(lowered, OPTIONS)
    assert table["what_if"][0]["weights"] > table["what_if"][1]["weights"]
    assert [(one["graph"], one["bytes"] > 0) for one in table["pictures"]] == [("vision", True)]


def test_the_page_shows_every_layer_and_escapes_what_it_shows():
    facts = {
        "model": "<b>",
        "findings": [],
        "errors": {"model.layers.0.mlp.up_proj.weight": 0.25, "lm_head.weight": 0.5},
    }
    text = page(facts)
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "25.00%" in heat(facts["errors"])
    assert "mlp.up_proj" in text


def test_a_report_of_a_check_is_a_page():
    text = checked(
        "a<b>.litertlm", [("graph", "checked here", "DOES NOT HOLD", "<3e-1>"), ("speed", "", "", "no phone")]
    )
    assert "a&lt;b&gt;.litertlm" in text
    assert '<td class="error">DOES NOT HOLD</td>' in text
    assert "&lt;3e-1&gt;" in text


def test_the_picture_has_every_matrix_once(pipe):
    lowered = lint(pipe, OPTIONS).lowered
    shown = columns(lowered)
    assert [column["title"] for column in shown] == ["encoder", "projector", "language model"]
    told = sum(one["bytes"] for column in shown for one in column["boxes"])
    assert told == sum(m.codes.size * m.bits // 8 + 4 * len(m.scales) for m in lowered.matrices.values())
    text = svg(shown)
    root = ElementTree.fromstring(text)
    assert root.tag == "svg"
    assert "embedding lookup" in text
    assert f"{pipe.model.text.layers} times" in text


def test_the_command_prints_json_and_writes_the_page(pipe, tmp_path):
    folder = pipe.save_pretrained(tmp_path / "model")
    given = ["npu", str(folder), "--rows", "64", "--json", "--html", str(tmp_path / "a.html"), "--pj-dram", "4"]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 0, run.output
    facts = json.loads(run.stdout)
    assert facts["energy"]["dram"] == 4.0
    assert any("4 pJ for a bit from memory (given by option)" in line for line in facts["assumed"])
    plain = facts["what_if"][0]
    assert plain["millijoules"] > plain["bytes"] * 8 * 4e-9
    assert facts["fine"] is True
    assert facts["what_if"][0]["milliseconds"] > 0
    shown = (tmp_path / "a.html").read_text()
    assert "One token at 85 GB/s" in shown
    assert "attention over the cache" in shown
