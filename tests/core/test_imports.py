"""What importing and listing load, and what the core may know."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import andes_sdk

CORE = Path(andes_sdk.__file__).parent
HEAVY = ("torch", "transformers", "accelerate", "peft", "PIL", "numpy")


def loaded_after(code: str, site: Path | None = None) -> set[str]:
    """Top-level modules in sys.modules after running code in a fresh interpreter."""
    path = os.pathsep.join([str(site)] if site else [])
    script = f"{code}\nimport sys\nprint('\\n'.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    assert not loaded_after("import andes_sdk") & set(HEAVY)


def test_a_plugin_author_can_import_hookimpl_without_torch() -> None:
    assert not loaded_after("from andes_sdk import hookimpl; from andes_sdk.config import structure") & set(HEAVY)


def test_listing_plugins_imports_none_of_them_and_no_torch() -> None:
    loaded = loaded_after("from andes_sdk.assembling.discovery import installed; assert len(installed()) >= 6")
    assert not {m for m in loaded if m.startswith("andes_")} - {"andes_sdk"}
    assert not loaded & {"torch", "transformers"}


def test_a_hostile_plugin_that_is_not_named_is_never_imported(distribution) -> None:
    site = distribution(
        "andes-hostile",
        {"hostile": "andes_hostile:Hostile"},
        {"andes_hostile/__init__.py": "raise SystemExit('executed')\nclass Hostile:\n    contract = '1.0'\n"},
    )
    code = (
        "from andes_sdk import Pipeline; from andes_sdk.assembling.discovery import installed\n"
        "assert any(p.name == 'hostile' for p in installed())\n"
        "Pipeline.from_plugins([{'aimv2': {'preset': 'tiny'}}, 'mlp', {'qwen3': {'preset': 'tiny'}}])"
    )
    assert "andes_hostile" not in loaded_after(code, site)


def test_the_core_imports_no_plugin() -> None:
    found = []
    # text of other distributions, which need andes-training and andes-packing
    templates = {CORE / "scaffold" / "training_stage", CORE / "scaffold" / "format"}
    for path in (p for p in CORE.rglob("*.py") if not templates & {*p.parents}):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found += [(path.name, n) for n in names if n.startswith("andes_") and n.split(".")[0] != "andes_sdk"]
    assert found == []


def test_stevedore_and_cattrs_are_imported_in_one_place_each() -> None:
    users: dict[str, set[str]] = {"stevedore": set(), "cattrs": set()}
    # text of other distributions, which need andes-training and andes-packing
    templates = {CORE / "scaffold" / "training_stage", CORE / "scaffold" / "format"}
    for path in (p for p in CORE.rglob("*.py") if not templates & {*p.parents}):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [module or ""]
            for name in names:
                if name.split(".")[0] in users:
                    users[name.split(".")[0]].add(path.name)
    assert users == {"stevedore": {"discovery.py"}, "cattrs": {"config.py"}}
