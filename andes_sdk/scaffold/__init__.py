"""`andes new`: plugin distributions that work from the start.

Each folder beside this file is a whole plugin, checked like any other code of the SDK. A new plugin is a copy of one in
which the class `Example` and the name "example" are replaced.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from attrs import frozen

from andes_sdk import CONTRACT, __version__
from andes_sdk.assembling import discovery
from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError
from andes_sdk.files import appearing
from andes_sdk.hookspecs import GROUP

HERE = Path(__file__).parent
NAME = re.compile(r"[a-z]([a-z0-9]|[-_](?=[a-z0-9]))*")


@frozen
class Kind:
    """A kind of plugin to start from.

    Attributes:
        folder: where its source is.
        does: what it does, for the README.
        needs: requirements beside andes-sdk and attrs.
        use: how a pipeline uses it; `NAME` is replaced. note: what else that needs.
    """

    folder: str
    does: str
    needs: tuple[str, ...] = ("torch>=2.13",)
    use: str = 'Pipeline.from_plugins(["aimv2", "mlp", "qwen3", "NAME"])'
    note: str = ""


KINDS: dict[str, Kind] = {
    "encoder": Kind(
        "encoder", "Turns the patches of pictures into features", use='Pipeline.from_plugins(["NAME", "mlp", "qwen3"])'
    ),
    "projector": Kind(
        "projector",
        "Merges blocks of image features into rows for the language model",
        use='Pipeline.from_plugins(["aimv2", "NAME", "qwen3"])',
    ),
    "language-model": Kind(
        "language_model",
        "A language model over bytes, with its tokenizer",
        use='Pipeline.from_plugins(["aimv2", "mlp", "NAME"])',
    ),
    "modality": Kind(
        "modality",
        "Packs samples of sound and turns them into rows for the language model",
        use='Pipeline.from_plugins([..., {"words": {"kinds": ["audio"]}}, "NAME"])',
        note="""The tokenizer must have a placeholder for "audio". `words` stands for a language model whose plugin has
one, such as that of `andes new words --kind language-model`.""",
    ),
    "cache-policy": Kind("cache_policy", "Decides which KV rows stay"),
    "decoder": Kind("decoder", "Proposes tokens and lets the model verify them"),
    "training-stage": Kind(
        "training_stage",
        'One stage of training, named in a recipe by `stage = "NAME"`',
        needs=("andes-training>=0.1", "torch>=2.13"),
    ),
    "modules": Kind("modules", "Adds a head to a model before its weights are read"),
    "compressor": Kind("compressor", "Rounds the weights of linear layers to few bits"),
    "backend": Kind(
        "backend",
        "Runs a model so that a row's bits do not depend on the rows beside it",
        use='Pipeline.from_plugins(["aimv2", "mlp", "qwen3", "NAME"], backend="NAME")',
    ),
    "format": Kind("format", "Lays compressed weights out in bytes", needs=("andes-packing>=0.1",)),
    "reward": Kind("reward", "Scores answers for reinforcement learning", needs=()),
    "data-filter": Kind("data_filter", "Drops training samples that are not worth their time, with a reason", needs=()),
    "benchmark": Kind("benchmark", "Asks a model for the colour of pictures and scores it", needs=("pillow>=11.3",)),
    "exporter": Kind("exporter", "Writes the weights of a model as a file of another runtime"),
}
"""Kind, as `andes new --kind` takes it."""


@frozen(kw_only=True)
class Created:
    """A distribution that was made.

    Attributes:
        name: of the plugin. distribution, package: as pip and Python call it.
        files: relative to `folder`.
    """

    name: str
    kind: str
    distribution: str
    package: str
    folder: Path
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "distribution": self.distribution,
            "package": self.package,
            "folder": str(self.folder),
            "files": list(self.files),
        }


def create(name: str, kind: str, folder: Path = Path()) -> Created:
    """Write the distribution `andes-<name>` into a new folder inside `folder`; it appears whole or not at all.

    Raises:
        ConfigError: an unusable name or kind, a name that is taken, or a folder that exists.
    """
    if kind not in KINDS:
        raise ConfigError(f"no kind {kind!r}", who="--kind", fix=suggestion(kind, KINDS))
    distribution = _distribution(name)
    target = folder / distribution
    if target.exists():
        raise ConfigError("exists already", who=str(target), fix="choose another name or --folder, or remove it")
    package = distribution.replace("-", "_")
    texts = render(name, kind)
    try:
        with appearing(target) as temporary:
            for path, text in texts.items():
                (temporary / path).parent.mkdir(parents=True, exist_ok=True)
                (temporary / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError("cannot be written", who=str(target), why=str(error), fix="choose another --folder") from None
    return Created(
        name=name, kind=kind, distribution=distribution, package=package, folder=target, files=tuple(sorted(texts))
    )


def _distribution(name: str) -> str:
    """The distribution of a plugin name: `andes-` before it, unless it is there."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a name",
            who="NAME",
            why="a plugin's name is also the name of a distribution and of a package",
            fix="use lower-case letters, digits and single hyphens or underscores, starting with a letter",
        )
    distribution = "andes-" + name.removeprefix("andes-").replace("_", "-")
    if distribution in ("andes-sdk", "andes-"):
        raise ConfigError(f"{distribution!r} is the SDK itself", who="NAME", fix="choose another name")
    for info in discovery.installed():
        if info.name == name:
            raise ConfigError(f"{info.distribution} registers this name", who=name, fix="choose another name")
    return distribution


def render(name: str, kind: str) -> dict[str, str]:
    """Path inside the distribution -> text of the file."""
    distribution = _distribution(name)
    package = distribution.replace("-", "_")
    cls = "".join(part.capitalize() for part in re.split("[-_]", name))
    sources = {
        f"{package}/{path.name}": _adapt(path.read_text(encoding="utf-8"), name, cls)
        for path in sorted((HERE / KINDS[kind].folder).glob("*.py"))
    }
    return {
        "pyproject.toml": _pyproject(name, kind, distribution, package, cls),
        "README.md": _readme(name, kind, distribution),
        "LICENSE": (HERE / "LICENSE.txt").read_text(encoding="utf-8"),
        "tests/test_conformance.py": TEST.replace("NAME", name),
        f"{package}/py.typed": "",
        **sources,
    }


def _adapt(text: str, name: str, cls: str) -> str:
    text = re.sub(r"\bExample\b", cls, text)
    return text.replace('"example"', f'"{name}"').replace("noqa: RUF012 - ", "")


TEST = '''"""What every plugin of this kind must keep to; a case per property."""

from andes_sdk.testing import conformance

test_conformance = conformance("NAME")
'''


def _pyproject(name: str, kind: str, distribution: str, package: str, cls: str) -> str:
    needs = ", ".join(f'"{r}"' for r in (f"andes-sdk>={__version__}", "attrs>=25.3", *KINDS[kind].needs))
    return f'''[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{KINDS[kind].does.split(", named")[0]}: a plugin for andes_sdk"
readme = "README.md"
requires-python = ">=3.11"
license = "Apache-2.0"
license-files = ["LICENSE"]
dependencies = [{needs}]

[project.optional-dependencies]
test = ["andes-sdk[testing]"]

[project.entry-points."{GROUP}"]
{name} = "{package}:{cls}"

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
'''


def _readme(name: str, kind: str, distribution: str) -> str:
    does = KINDS[kind].does.replace("NAME", name)
    note = f"\n{KINDS[kind].note}\n" if KINDS[kind].note else ""
    return f"""# {distribution}

{does}. A plugin for andes_sdk: kind {kind}, contract {CONTRACT[0]}.{CONTRACT[1]}.

```python
from andes_sdk import Pipeline

pipe = {KINDS[kind].use.replace("NAME", name)}
```
{note}
Work on it:

```
pip install -e ".[test]"
andes plugins show {name}
andes plugins check {name}
pytest
```
"""
