"""Benchmarks of plugins, run on a pipeline and by the command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from attrs import frozen
from typer.testing import CliRunner

from andes_sdk import Pipeline, hookimpl
from andes_sdk.cli import app
from andes_sdk.errors import ConfigError, PluginBroken
from andes_sdk.testing.reference import (
    ReferenceBenchmark,
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceProjector,
    ReferenceTokenizer,
)


@frozen
class Given:
    figures: Any
    name: str = "given"

    def run(self, pipeline: Any, *, limit: int | None = None) -> Mapping[str, float]:
        if isinstance(self.figures, Exception):
            raise self.figures
        return self.figures or {"limit": float(limit or 0)}


@frozen(eq=False, kw_only=True)
class Brings:
    contract = "1.1"

    figures: Any = None

    @hookimpl
    def andes_benchmarks(self) -> Sequence[Any]:
        return [Given(self.figures)]


def pipeline(figures: Any = None) -> Pipeline:
    base = (ReferenceEncoder(), ReferenceProjector(), ReferenceLanguageModel(), ReferenceTokenizer())
    return Pipeline.from_plugins([*base, ReferenceBenchmark(), Brings(figures=figures)])


def test_a_benchmark_is_run_with_its_limit() -> None:
    assert set(pipeline().evaluate("reference-answers", limit=2)) == {"answered"}
    assert pipeline().evaluate("given", limit=7) == {"limit": 7.0}
    assert pipeline().evaluate("given") == {"limit": 0.0}


@pytest.mark.parametrize("figures", [{"a": float("nan")}, {"a": "1"}, ValueError("no"), [1]])
def test_what_are_no_figures_is_told(figures: Any) -> None:
    with pytest.raises(PluginBroken, match="given"):
        pipeline(figures).evaluate("given")


def test_unknown_names_and_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gives' to benchmarks"):
        pipeline().evaluate("gives")
    with pytest.raises(ConfigError, match="a limit of 0"):
        pipeline().evaluate("given", limit=0)


def andes(monkeypatch: pytest.MonkeyPatch, *arguments: str, code: int = 0) -> Any:
    from andes_evaluation import cli

    monkeypatch.setattr(cli, "open_pipeline", lambda *_, **__: pipeline())
    result = CliRunner().invoke(app, ["eval", "model", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_the_command_prints_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(andes(monkeypatch, "given", "--limit", "3", "--json").stdout)
    assert (told["figures"], told["limit"], told["benchmark"]) == ({"limit": 3.0}, 3, "given")
    assert "3.0000" in andes(monkeypatch, "given", "--limit", "3").stdout
    assert "no plugin" in andes(monkeypatch, "gives", code=1).stderr
