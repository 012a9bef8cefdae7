"""Which plugins exist, and which object a name means. The only import of stevedore.

Listing reads metadata and source text and imports nothing; only what the user names is imported.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from attrs import frozen
from stevedore import DriverManager

from andes_sdk.config import suggestion
from andes_sdk.errors import AndesError, ContractMismatch, DuplicateName, PluginBroken, PluginNotFound
from andes_sdk.hookspecs import CHANGED, GROUP, HOOKS
from andes_sdk.version import CONTRACT


@frozen(kw_only=True)
class PluginInfo:
    """An installed plugin, read without importing it.

    Attributes:
        kind: what it provides, comma-separated; '?' where the source does not show it.
        contract: version it states; '?' where the source does not show it.
        status: 'ok' or what is wrong.
    """

    name: str
    kind: str
    distribution: str
    version: str
    contract: str
    status: str
    target: str


def _entry_points(group: str = GROUP) -> list[importlib.metadata.EntryPoint]:
    """Entry points of a group in order of name, one per (distribution, name): a path listed twice counts once."""
    found: dict[tuple[str, str, str], importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=group):
        found.setdefault((point.name, point.value, point.dist.name if point.dist else ""), point)
    return [found[key] for key in sorted(found)]


def extensions(group: str) -> list[str]:
    """Names that distributions add to a group beside plugins (`hookspecs.COMMANDS` …); nothing is imported."""
    return sorted({point.name for point in _entry_points(group)})


def load_extension(group: str, name: str) -> Any:
    """Import what a distribution adds to a group under a name.

    Raises:
        PluginNotFound: nothing of that name is installed. DuplicateName: two distributions add it. PluginBroken: it
            cannot be imported.
    """
    points = [point for point in _entry_points(group) if point.name == name]
    if not points:
        fix = f"{suggestion(name, extensions(group))}; or install the distribution that brings it."
        raise PluginNotFound(f"nothing installed adds {name!r} to {group}", who=name, fix=fix)
    if len(points) > 1:
        raise DuplicateName(f"{name!r} is added to {group} by {_owners(points)}", who=name, fix="uninstall one")
    try:
        return points[0].load()
    except Exception as error:
        raise _unloadable(points[0], error, "reinstall the distribution that brings it") from error


def _unloadable(point: importlib.metadata.EntryPoint, error: Exception, fix: str) -> PluginBroken:
    why = f"{type(error).__name__}: {error}"
    return PluginBroken("cannot be imported", who=f"{point.name} ({point.value})", why=why, fix=fix)


def _owners(points: list[importlib.metadata.EntryPoint]) -> str:
    return " and ".join(f"{p.dist.name} ({p.value})" if p.dist else p.value for p in points)


def exists(name: str) -> bool:
    """Whether a distribution registers this name; nothing is imported."""
    return any(point.name == name for point in _entry_points())


def installed() -> list[PluginInfo]:
    """Every installed plugin, sorted by name; nothing is imported. A broken one is a row, not a crash."""
    points = _entry_points()
    names = [p.name for p in points]
    return [_inspect(p, duplicate=names.count(p.name) > 1) for p in points]


def bringing(collection: str) -> list[str]:
    """Names of the installed plugins that bring something to a collection; nothing is imported."""
    return [one.name for one in installed() if collection in one.kind.split(", ")]


def _inspect(point: importlib.metadata.EntryPoint, *, duplicate: bool) -> PluginInfo:
    status, hooks, contract = "ok", [], "?"
    try:
        node = _class_source(point.module, point.attr)
        hooks = [n.name for n in node.body if isinstance(n, ast.FunctionDef) and n.name.startswith("andes_")]
        contract = _contract_of(node)
        if contract != "?":
            check_contract(contract, point.name)
    except AndesError as error:
        status = error.what
    except (OSError, SyntaxError, ValueError) as error:
        status = f"cannot be read: {error}"
    if duplicate:
        status = "two distributions register this name"
    kinds = [HOOKS[h] for h in hooks if h in HOOKS and HOOKS[h] not in ("check", "explain", "event")]
    kinds = kinds or [HOOKS[h] for h in hooks if h in HOOKS]
    return PluginInfo(
        name=point.name, kind=", ".join(kinds) or "?", distribution=point.dist.name if point.dist else "?",
        version=point.dist.version if point.dist else "?", contract=contract, status=status, target=point.value,
    )  # fmt: skip


def _class_source(module: str, attribute: str, depth: int = 4) -> ast.ClassDef:
    """The class statement that an entry point means, following `from .x import Y`; the file is parsed, not run."""
    path = _module_file(module)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return node
        if depth and isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == attribute:
                    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                    base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                    target = f"{base}.{node.module}" if node.level and node.module else node.module or base
                    return _class_source(target, alias.name, depth - 1)
    raise PluginBroken(f"{module} has no class {attribute!r}", who=module)


def _module_file(module: str) -> Path:
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        raise PluginBroken(f"module {module!r} is not installed", who=module)
    if not spec.submodule_search_locations:
        return Path(str(spec.origin))
    for root in spec.submodule_search_locations:
        base = Path(root).joinpath(*rest)
        for candidate in (base / "__init__.py", base.with_suffix(".py")):
            if candidate.is_file():
                return candidate
    raise PluginBroken(f"module {module!r} has no source file", who=module)


def _contract_of(node: ast.ClassDef) -> str:
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names = [t.id for t in targets if isinstance(t, ast.Name)]
        if "contract" in names and isinstance(value := getattr(statement, "value", None), ast.Constant):
            return str(value.value)
    return "?"


def check_contract(contract: Any, who: str) -> None:
    """Refuse a plugin whose contract this core does not speak.

    Raises:
        ContractMismatch: not 'major.minor', or another version than the core's.
    """
    ours = ".".join(map(str, CONTRACT))
    try:
        major, minor = (int(part) for part in contract.split("."))
    except (AttributeError, ValueError):
        what = f"states no usable contract version ({contract!r})"
        raise ContractMismatch(what, who=who, fix=f'set the class attribute `contract = "{ours}"`') from None
    if (major, minor) != CONTRACT:
        newer = (major, minor) > CONTRACT
        what = f"was written for contract {contract}, this andes_sdk speaks {ours}"
        fix = "upgrade andes-sdk" if newer else f'port the plugin, then set `contract = "{ours}"`'
        raise ContractMismatch(what, who=who, why="" if newer else CHANGED, fix=fix)


def _raise(_manager: Any, _point: Any, error: BaseException) -> None:
    # without this stevedore logs the reason and reports only that no driver was found
    raise error


def load(name: str) -> tuple[type, str, str]:
    """Import the class that `name` means -> (class, distribution, version).

    Raises:
        PluginNotFound, DuplicateName, PluginBroken, ContractMismatch
    """
    points = [p for p in _entry_points() if p.name == name]
    if not points:
        known = {p.name for p in _entry_points()}
        fix = f"{suggestion(name, known)}; `andes plugins` lists what is installed; else install what brings it"
        raise PluginNotFound(f"no installed plugin is named {name!r}", who=name, fix=fix)
    if len(points) > 1:
        what = f"the plugin name {name!r} is registered by {_owners(points)}"
        raise DuplicateName(what, who=name, fix="uninstall one, or pass its object instead")
    dist = points[0].dist
    try:
        # stevedore remembers entry points per process and on disk; a plugin may have been installed since
        DriverManager.ENTRY_POINT_CACHE[GROUP] = points
        cls: Any = DriverManager(GROUP, name, on_load_failure_callback=_raise).driver
    except Exception as error:
        raise _unloadable(points[0], error, "reinstall the plugin, or leave it out of the list") from error
    if not isinstance(cls, type):
        raise PluginBroken(f"its entry point is {cls!r}, not a class", who=name, fix="point it at the attrs class")
    check_contract(getattr(cls, "contract", None), name)
    return cls, dist.name if dist else "", dist.version if dist else ""
