"""`andes_sdk.types`: one public place, whatever module of it a name stands in."""

from __future__ import annotations

import pickle
import pkgutil
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
from attrs import evolve

from andes_sdk import types

SUBJECTS = sorted(info.name for info in pkgutil.iter_modules(types.__path__))


def public(module: Any) -> dict[str, Any]:
    """Classes that a module defines."""
    found = {n: v for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def test_every_class_of_a_subject_is_public_under_one_name() -> None:
    subjects = [public(import_module(f"andes_sdk.types.{name}")) for name in SUBJECTS]
    names = sorted(name for subject in subjects for name in subject)
    assert sorted([*names, "Grid", "Look"]) == types.__all__  # two are aliases
    assert len(set(names)) == len(names)
    assert all(getattr(types, name) is value for subject in subjects for name, value in subject.items())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_subject_can_be_imported_first_and_loads_no_torch(subject: str) -> None:
    code = f"import sys, andes_sdk.types.{subject}; sys.exit(bool({{'torch', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "value",
    [
        types.VisionSpec(width=8, patch_size=14),
        types.Turn("user", ("look", types.Slot("image"))),
        types.Rendered((1, 2), (False, True), "<think>"),
        types.Event(kind="step", step=3, values={"loss": 0.5}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_data_survives_a_pickle(value: Any) -> None:
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert evolve(again) == value


def test_pickles_name_classes_by_where_users_find_them_too() -> None:
    for name in types.__all__:
        assert pickle.loads(f"candes_sdk.types\n{name}\n.".encode()) is getattr(types, name)
