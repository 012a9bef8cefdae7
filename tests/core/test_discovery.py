"""What exists, and which object a name means."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from andes_sdk import Pipeline, pipeline
from andes_sdk.assembling import discovery
from andes_sdk.errors import ContractMismatch, DuplicateName, MethodNotFound, PluginBroken, PluginNotFound
from andes_sdk.hookspecs import METHODS

GOOD = """
from attrs import frozen, field
from andes_sdk import hookimpl

@frozen(eq=False, kw_only=True)
class Good:
    "A policy."
    contract = "1.1"

    @hookimpl
    def andes_cache_policy(self, model): ...

    @hookimpl
    def andes_check(self, plan): ...
"""


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def add(site: Path) -> None:
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return add


def row(name: str) -> discovery.PluginInfo:
    return next(p for p in discovery.installed() if p.name == name)


def test_a_row_tells_kind_distribution_version_and_contract_from_source_alone(distribution, on_path) -> None:
    on_path(
        distribution(
            "acme-good",
            {"good": "acme_good.plugin:Good"},
            {"acme_good/plugin.py": GOOD, "acme_good/__init__.py": "raise ImportError"},
        )
    )
    info = row("good")
    assert (info.kind, info.distribution, info.version, info.contract, info.status) == (
        "cache_policy",
        "acme-good",
        "1.2.3",
        "1.1",
        "ok",
    )
    assert "acme_good" not in sys.modules


def test_a_class_re_exported_from_a_submodule_is_found(distribution, on_path) -> None:
    on_path(
        distribution(
            "acme-re",
            {"re": "acme_re:Good"},
            {"acme_re/__init__.py": "from .inner import Good\n", "acme_re/inner.py": GOOD},
        )
    )
    assert row("re").kind == "cache_policy"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def broken(:", "cannot be read"),
        ("x = 1", "has no class 'Good'"),
        (GOOD.replace('"1.1"', '"2.0"'), "written for contract 2.0"),
        (GOOD.replace('"1.1"', '"1.99"'), "written for contract 1.99"),
    ],
)
def test_a_broken_plugin_is_a_row_not_a_crash(distribution, on_path, source: str, status: str) -> None:
    on_path(distribution("acme-broken", {"broken": "acme_broken:Good"}, {"acme_broken/__init__.py": source}))
    assert status in row("broken").status


def test_a_missing_module_is_a_row(distribution, on_path) -> None:
    on_path(distribution("acme-gone", {"gone": "acme_gone.deep:Good"}, {}))
    assert "not installed" in row("gone").status


def test_an_unknown_name_suggests_a_close_one() -> None:
    with pytest.raises(PluginNotFound, match="did you mean 'aimv2'"):
        discovery.load("aimv3")


def test_a_plugin_that_cannot_be_imported_says_why(distribution, on_path) -> None:
    on_path(distribution("acme-bad", {"bad": "acme_bad:Good"}, {"acme_bad/__init__.py": "import not_there_at_all"}))
    with pytest.raises(PluginBroken, match="not_there_at_all") as caught:
        discovery.load("bad")
    assert "acme_bad:Good" in caught.value.who


def test_a_name_registered_twice_names_both_distributions(distribution, on_path) -> None:
    on_path(distribution("acme-one", {"twin": "acme_one:Good"}, {"acme_one.py": GOOD}))
    distribution("acme-two", {"twin": "acme_two:Good"}, {"acme_two.py": GOOD})
    with pytest.raises(DuplicateName, match=r"acme-one.*acme-two"):
        discovery.load("twin")
    assert {p.status for p in discovery.installed() if p.name == "twin"} == {"two distributions register this name"}


@pytest.mark.parametrize("contract", ["2.0", "0.9", "1.0", "1.2", "one", None, 1.0])
def test_contracts_that_the_core_does_not_speak_are_refused(contract) -> None:
    with pytest.raises(ContractMismatch):
        discovery.check_contract(contract, "someone")


def test_the_own_contract_is_accepted() -> None:
    discovery.check_contract("1.1", "someone")


def test_a_method_that_is_not_installed_is_a_missing_attribute_that_names_who_brings_it(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = Pipeline.from_plugins(tiny)
    monkeypatch.setattr(discovery, "_entry_points", lambda *_: [])
    assert not hasattr(pipe, "train")
    with pytest.raises(MethodNotFound, match="no 'train'") as caught:
        pipe.train({})
    assert caught.value.why == "andes-training, which brings it, is not installed"
    assert caught.value.fix == "pip install andes-training"
    with pytest.raises(AttributeError, match="a pipeline has no 'trein'") as caught:
        _ = pipe.trein
    assert caught.value.fix == ""


def test_the_methods_that_the_advice_names_are_those_of_our_distributions() -> None:
    found = {}
    for path in Path(__file__).parents[2].glob("plugins/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        found |= dict.fromkeys(project.get("entry-points", {}).get(METHODS, ()), project["name"])
    assert found == pipeline._BROUGHT
