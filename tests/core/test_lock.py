"""constraints.txt names everything that our projects declare, within the declared bounds."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECTS = [
    ROOT / "pyproject.toml",
    *sorted(ROOT.glob("plugins/*/pyproject.toml")),
    ROOT / "examples/third_party_plugin/pyproject.toml",
]
LOCK = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def locked() -> dict[str, list[str]]:
    """Versions by name; a distribution has several when they differ between releases of Python."""
    found: dict[str, list[str]] = {}
    for line in LOCK:
        entry = Requirement(line)
        (only,) = entry.specifier
        found.setdefault(canonicalize_name(entry.name), []).append(only.version)
    return found


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_what_a_project_declares_is_locked_within_its_bounds(project: Path) -> None:
    data = tomllib.loads(project.read_text())
    extras = data["project"].get("optional-dependencies", {}).values()
    texts = [*data["build-system"]["requires"], *data["project"]["dependencies"], *chain(*extras)]
    wanted = [Requirement(text) for text in texts if not text.startswith("andes-")]
    versions = locked()
    absent = [str(w) for w in wanted if canonicalize_name(w.name) not in versions]
    assert absent == [], "run `nox -s lock`"
    outside = [(str(w), v) for w in wanted for v in versions[canonicalize_name(w.name)] if v not in w.specifier]
    assert outside == [], "run `nox -s lock`"


def test_each_line_is_one_exact_version_from_no_particular_place() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; .+)?", line)] == []
    assert [line for line in LOCK if line.startswith(("andes-", "nvidia-", "cuda-", "triton=="))] == []


def test_only_markers_may_tell_two_versions_of_one_distribution_apart() -> None:
    several = {name for name, versions in locked().items() if len(versions) > 1}
    plain = {canonicalize_name(Requirement(line).name) for line in LOCK if ";" not in line}
    assert several & plain == set()
