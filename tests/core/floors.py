"""The floors of the code, counted: `python tests/core/floors.py` lists each offence, `--json` prints the figures.

Every import of the core, of the plugins and of the example plugin is read from the source: at the top of a file, inside
a function, under TYPE_CHECKING. There are no exceptions. Three rules:

- a file imports from its own floor and those below, the core imports no plugin and no library of `FOREIGN`;
- no circle of files, in the core or across plugins;
- a plugin, and what `andes new` writes, imports of the core what `docs/public.md` lists, and of another plugin what is
  not underscored, if its `pyproject.toml` depends on it, or for a template, if its kind's `needs` name it.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from attrs import field, frozen

from andes_sdk.scaffold import KINDS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "public.md"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("hookspecs", "types", "plan", "errors", "config", "files", "reading", "version"),
    ("inputs", "numbers", "model"),
    ("assembling", "runtime"),
    ("storage",),
    ("pipeline", "__init__"),
    ("cli", "__main__", "testing", "scaffold"),
)
"""Parts of the core, lowest first; `__init__` is the package's own file, which hands out `Pipeline`."""

FOREIGN = ("transformers", "accelerate", "peft")
"""What the core never imports."""

FAMILIES = ("andesvl", "aimv2", "siglip2", "qwen")
"""Families of models, which the core's code does not name."""

CORE = "andes_sdk"


@frozen
class Source:
    """One file of code.

    Attributes:
        module: its dotted name.
        owner: the distribution's import name; templates of the scaffold are owned by `scaffold`.
        depends: import names of the distributions that the owner depends on.
    """

    path: Path
    module: str
    owner: str
    depends: frozenset[str] = frozenset()
    imports: list[tuple[int, str, str]] = field(factory=list)
    """Line, module, name in it ("" for the module itself)."""

    @property
    def where(self) -> str:
        """Path from the root of the repository."""
        return self.path.relative_to(ROOT).as_posix()


def sources() -> list[Source]:
    """Every file that ships, with its imports."""
    found = []
    needs = {kind.folder: _names(kind.needs) for kind in KINDS.values()}
    for path in sorted((ROOT / CORE).rglob("*.py")):
        parts = path.relative_to(ROOT / CORE).parts
        template = len(parts) > 2 and parts[0] == "scaffold"
        depends = needs[parts[1]] if template else frozenset()
        found.append(_source(path, ROOT, "scaffold" if template else CORE, depends))
    for project in sorted([*(ROOT / "plugins").iterdir(), ROOT / "examples" / "third_party_plugin"]):
        if (project / "pyproject.toml").is_file():
            facts = tomllib.loads((project / "pyproject.toml").read_text())["project"]
            depends = _names(facts.get("dependencies", ()))
            for package in sorted(project.glob("andes_*")):
                for path in sorted(package.rglob("*.py")):
                    found.append(_source(path, project, package.name, depends))
    return found


def _names(requirements: Iterable[str]) -> frozenset[str]:
    """Import names of requirements."""
    return frozenset(re.split(r"[^\w-]", text, maxsplit=1)[0].replace("-", "_") for text in requirements)


def _source(path: Path, root: Path, owner: str, depends: frozenset[str] = frozenset()) -> Source:
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]
    module = ".".join(package if parts[-1] == "__init__" else parts)
    source = Source(path, module, owner, depends)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            source.imports.extend((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            target = ".".join(part for part in (base, node.module or "") if part)
            source.imports.extend((node.lineno, target, alias.name) for alias in node.names)
    return source


def targets(source: Source, modules: Mapping[str, Source]) -> Iterator[tuple[int, str, str]]:
    """Imports of files among `modules` -> line, module that is read, name in it ("" for the module)."""
    for line, module, name in source.imports:
        if f"{module}.{name}" in modules:
            yield line, f"{module}.{name}", ""
        elif module in modules:
            yield line, module, name


def floor(module: str) -> int:
    """Floor of a module of the core.

    Raises:
        KeyError: a part that the table does not have.
    """
    part = [*module.split("."), "__init__"][1]
    for number, parts in enumerate(FLOORS):
        if part in parts:
            return number
    raise KeyError(f"{module}: add {part!r} to FLOORS")


def upward(found: list[Source]) -> list[str]:
    """Imports from a higher floor, of plugins, or of what the core never imports."""
    modules = {s.module: s for s in found}
    wrong = []
    for source in (s for s in found if s.owner == CORE):
        own = floor(source.module)
        for line, module, _ in targets(source, modules):
            if not module.startswith(CORE):
                wrong.append(f"{source.where}:{line}: the core imports the plugin {module}")
            elif modules[module].owner == CORE and (other := floor(module)) > own:
                wrong.append(f"{source.where}:{line}: floor {own} imports {module} of floor {other}")
        tops = {(line, module.split(".")[0]) for line, module, _ in source.imports}
        wrong += [f"{source.where}:{line}: the core imports {top}" for line, top in sorted(tops) if top in FOREIGN]
    return wrong


def circles(found: list[Source]) -> list[str]:
    """Groups of files that import one another (strongly connected components, Tarjan)."""
    modules = {s.module: s for s in found}
    graph = {s.module: sorted({m for _, m, _ in targets(s, modules)}) for s in found}
    wrong = []
    for group in components(graph):
        if len(group) > 1 or group[0] in graph[group[0]]:
            wrong.append(" <-> ".join(sorted(group)))
    return sorted(wrong)


def components(graph: Mapping[str, list[str]]) -> list[list[str]]:
    """Strongly connected components of a graph."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    made: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            cut = stack.index(node)
            made.append(stack[cut:])
            del stack[cut:]

    for node in graph:
        if node not in index:
            visit(node)
    return made


def public() -> tuple[str, ...]:
    """Modules that `docs/public.md` lists: the first code of each row of its tables."""
    rows = re.findall(r"^\| `(andes_sdk[\w.]*)`", PAGE.read_text(encoding="utf-8"), re.M)
    return tuple(rows)


def private(found: list[Source]) -> list[str]:
    """Imports by plugins and templates of what is not public."""
    modules, listed, wrong = {s.module: s for s in found}, set(public()), []
    owners = {s.owner for s in found} - {CORE, "scaffold"}
    for source in (s for s in found if s.owner != CORE):
        for line, module, name in source.imports:
            top = module.split(".")[0]
            whole = f"{module}.{name}" if name and f"{module}.{name}" in modules else module
            hidden = any(part.startswith("_") and not part.startswith("__") for part in [*whole.split("."), name])
            if top == CORE and source.owner == "scaffold" and module.startswith(f"{CORE}.scaffold"):
                continue  # a template's own files, which lie below andes_sdk until they are written out
            if top == CORE and (whole not in listed or hidden):
                wrong.append(f"{source.where}:{line}: {whole} is not public")
            elif top in owners - {source.owner} and (top not in source.depends or hidden):
                why = "is not public" if hidden else "is of a distribution that pyproject.toml does not depend on"
                wrong.append(f"{source.where}:{line}: {whole} {why}")
    return sorted(set(wrong))


def core_lines() -> int:
    """Lines of the core without its testing kit and what `andes new` writes."""
    paths = (
        p for p in (ROOT / CORE).rglob("*.py") if p.relative_to(ROOT / CORE).parts[0] not in ("testing", "scaffold")
    )
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def offences() -> dict[str, list[str]]:
    """Rule -> its offences."""
    found = sources()
    return {"circles": circles(found), "upward_imports": upward(found), "private_imports_by_plugins": private(found)}


def main() -> int:
    """Print figures or offences -> how many rules are broken."""
    wrong = offences()
    if "--json" in sys.argv[1:]:
        print(json.dumps({**{rule: len(found) for rule, found in wrong.items()}, "core_lines": core_lines()}))
    else:
        for rule, found in wrong.items():
            print(f"{rule}: {len(found)}", *(f"  {text}" for text in found), sep="\n")
        print(f"core_lines: {core_lines()}")
    return sum(bool(found) for found in wrong.values())


if __name__ == "__main__":
    sys.exit(main())
