"""`andes context`: figures of what was kept, and a page that shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from andes_okv.context import look, page
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import ConfigError
from andes_sdk.testing.material import conversation, picture, plain_inputs

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
SMALL = {"rows": 16, "sinks": 2, "recent": 6, "slack": 0, "chunk": 16}


def pipeline(**okv: Any) -> Pipeline:
    return Pipeline.from_plugins([*PLUGINS, {"okv": {**SMALL, **okv}}])


def test_the_figures_are_those_of_the_session() -> None:
    pipe = pipeline(scorer="snapkv", budget="layer")
    found = look(pipe, plain_inputs(pipe, 100), tokens=5)
    spec = pipe.model.text
    facts = found.to_dict()
    assert facts["rows"] == 105
    assert facts["kept"] == 16 * spec.layers * spec.kv_heads == int(found.kept.sum())
    assert [sum(layer) for layer in facts["layers"]] == [16 * spec.kv_heads] * spec.layers
    assert facts["share"] == pytest.approx(16 / 105, abs=1e-4)
    assert facts["choices"] == 7 + 5 - 1  # chunks of 16 after the first, then each token
    assert bool(found.kept[:, :, [0, 1, *range(99, 105)]].all())


def test_every_row_that_went_has_a_reason() -> None:
    pipe = pipeline(scorer="keynorm")
    found = look(pipe, plain_inputs(pipe, 60))
    heads = found.kept.shape[0] * found.kept.shape[1]
    for place in range(60):
        dropped = heads - int(found.kept[:, :, place].sum())
        assert (found.notes.gone[place][0] if place in found.notes.gone else 0) == dropped
    for _, seen, own, least in found.notes.gone.values():
        assert seen in (32, 48, 60)
        assert own < 0  # minus a norm
        assert least < 0


def test_the_page_shows_cells_pictures_and_tokens() -> None:
    pipe = pipeline(scorer="snapkv")
    messages = conversation(0)
    found = look(pipe, pipe.prepare(messages))
    html = page(found, pipe, [picture(0)])
    (grid,) = found.grids
    assert html.count("of heads hold it</title>") == grid[0] * grid[1] == int(found.image.sum())
    assert html.count("data:image/png;base64,") == 1
    assert html.count("<span title=") == len(found.ids) - int(found.image.sum())
    assert html.count("[picture]") == 1
    cells = re.findall(r"<title>layer (\d+), head (\d+), rows (\d+) to \3: 100% held", html)
    assert len(cells) == int(found.kept.sum())  # fewer rows than columns: a cell for each
    for layer, head, row in cells:
        assert bool(found.kept[int(layer), int(head), int(row)])
    assert "it scored" in html
    assert "http" not in html  # nothing is fetched


def test_text_is_not_taken_as_markup() -> None:
    pipe = pipeline(scorer="snapkv")
    html = page(look(pipe, pipe.prepare("<script>alert(1)</script>")), pipe, [])
    assert "<script" not in html


def test_another_policy_is_refused() -> None:
    pipe = Pipeline.from_plugins(PLUGINS)
    with pytest.raises(ConfigError, match="the cache policy is 'keep-all'") as caught:
        look(pipe, plain_inputs(pipe, 10))
    assert "--plugin okv" in caught.value.fix


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    model = Pipeline.from_plugins(PLUGINS).save_pretrained(tmp_path / "tiny")
    picture().save(tmp_path / "noise.png")
    (tmp_path / "long.txt").write_text("A long text. " * 20)
    options = [part for k, v in {**SMALL, "scorer": "snapkv"}.items() for part in ("-o", f"okv.{k}={v}")]
    out = tmp_path / "page.html"
    done = CliRunner().invoke(
        app,
        ["context", f"@{tmp_path / 'long.txt'}", "-m", str(model), "-p", "okv", *options, "-i",
         str(tmp_path / "noise.png"), "--out", str(out), "--tokens", "2", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["share_image"] is not None
    assert facts["out"] == str(out)
    assert "What the context kept" in out.read_text()
