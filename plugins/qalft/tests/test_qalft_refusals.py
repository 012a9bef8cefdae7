"""What `andes qalft` refuses before any work: damaged bases, names that leave the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_adapters import registry
from andes_compression.compress import recipe_for, write
from andes_qalft import NAME
from andes_qat import QAT
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app

DATA = str(QAT.testing["data"])
MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    pipe = Pipeline.from_plugins([*MODEL, {"qat": {"body": "w4_g32"}}], seed=1)
    made = pipe.compress("qat")
    return write(pipe, made, tmp_path_factory.mktemp("base") / "m.andes", recipe_for(pipe, made, None)).path


def said(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(a) for a in arguments])
    return found.exit_code, " ".join((found.output + str(found.stderr)).split())


def test_no_contract_is_written_of_a_damaged_base(base: Path, tmp_path: Path) -> None:
    content = bytearray(base.read_bytes())
    content[-4096] ^= 0xFF
    (tmp_path / "m.andes").write_bytes(content)
    code, text = said("qalft", "contract", tmp_path / "m.andes", "--rank", "2", "--out", tmp_path / "c.json")
    assert code == 1
    assert "is damaged" in text
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "1x"])
def test_a_name_that_would_leave_the_run_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    assert said("qalft", "contract", base, "--rank", "2", "--out", tmp_path / "c.json")[0] == 0
    out = tmp_path / "run"
    train = ["qalft", "train", base, "--contract", tmp_path / "c.json", "--data", DATA, "--steps", "1", "--out", out]
    code, text = said(*train, "--name", name)
    assert code == 1
    assert "'adapter' must match" in text
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_edited_contract_and_another_bases_contract_are_refused(base: Path, tmp_path: Path) -> None:
    said("qalft", "contract", base, "--rank", "2", "--out", tmp_path / "c.json")
    facts = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "rank.json").write_text(json.dumps({**facts, "rank": 4}))
    (tmp_path / "half.json").write_text((tmp_path / "c.json").read_text()[:300])
    for file, what in (("rank.json", "its hash is not that of what it says"), ("half.json", "cannot be read")):
        arguments = ["--data", DATA, "--steps", "1", "--name", "x", "--out", tmp_path / "run"]
        code, text = said("qalft", "train", base, "--contract", tmp_path / file, *arguments)
        assert code == 1
        assert what in text
    assert not (tmp_path / "run").exists()


def test_names_of_adapters_are_those_that_registries_take() -> None:
    assert registry.NAME.pattern == NAME  # not imported by the plugin, whose options are listed without torch
