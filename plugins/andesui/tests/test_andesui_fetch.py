"""Kits: what they are, and what is told where they cannot be got."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from andes_andesui.fetch import fetch
from andes_andesui.kits import KIT_FILE, KITS
from andes_andesui.screens import Options, plan
from typer.testing import CliRunner

from andes_sdk.cli import app
from andes_sdk.errors import BackendUnavailable, InputError


def test_without_npm_the_command_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="npm is not installed") as caught:
        fetch(["sb-admin-2"], tmp_path / "kits")
    assert caught.value.fix == "apt-get install npm"
    assert not list((tmp_path / "kits").iterdir())


def test_an_unknown_kit_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown: nothing") as caught:
        fetch(["nothing"], tmp_path)
    assert "admin-lte" in caught.value.fix


def test_a_package_under_another_licence_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    wrong = """#!/bin/sh
    mkdir package && echo '{"license": "Proprietary"}' > package/package.json && tar czf p.tgz package"""
    (tools / "npm").write_text(wrong)
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    with pytest.raises(InputError, match="has another licence") as caught:
        fetch(["sb-admin-2"], tmp_path / "kits")
    assert caught.value.why == "it states 'Proprietary', expected 'MIT'"
    assert not (tmp_path / "kits" / "sb-admin-2").exists()


def test_a_kit_that_was_fetched_says_which_pages_are_screens(tmp_path: Path) -> None:
    for name in ("index.html", "vendor/demo.html"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<p>x</p>")
    facts = {"name": "sb-admin-2", "pages": ["*.html"]}
    (tmp_path / "folder" / KIT_FILE).write_text(json.dumps(facts))
    found = plan(Options(sources=(str(tmp_path / "folder"),), sizes=("224x224",), themes=("light",)))
    assert [(s.app.name, s.page, s.app.kit) for s in found] == [("sb-admin-2", "index.html", "sb-admin-2")]


def test_the_command_lists_kits_with_version_and_licence() -> None:
    result = CliRunner().invoke(app, ["ui", "fetch", "--json"])
    assert result.exit_code == 0, result.output
    listed = json.loads(result.stdout)
    assert [row["name"] for row in listed] == list(KITS)
    assert {row["licence"] for row in listed} == {"MIT"}
