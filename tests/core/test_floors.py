"""The floors of the code hold: no import upward, no circle of files, plugins import what is public."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("andes_floors", HERE / "floors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["andes_floors"] = module
    spec.loader.exec_module(module)
    return module


RULES = ("circles", "upward_imports", "private_imports_by_plugins")
LINES = 9_500
"""What the core may have, without its kit and scaffolds."""

NAMED = 12
"""Texts of the core, most of them help and errors, that name a family; they only become fewer, too."""


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_is_broken(floors: ModuleType, rule: str) -> None:
    assert floors.offences()[rule] == []


def test_the_core_stays_small(floors: ModuleType) -> None:
    assert floors.core_lines() <= LINES


def test_what_is_public_exists(floors: ModuleType) -> None:
    assert set(floors.public()) <= {source.module for source in floors.sources()}


def test_a_circle_of_three_is_found(floors: ModuleType) -> None:
    groups = floors.components({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})
    assert sorted(map(sorted, groups)) == [["a", "b", "c"], ["d"]]


def test_no_more_texts_name_a_model_family_than_are_known(floors: ModuleType) -> None:
    found = []
    for source in (s for s in floors.sources() if s.owner == "andes_sdk"):
        tree = ast.parse(source.path.read_text(encoding="utf-8"))
        texts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                words = node.value.lower()
                found += [f"{source.where}:{node.lineno}: {f}" for f in floors.FAMILIES if f in words]
    assert len(found) == NAMED, "\n".join(found)
