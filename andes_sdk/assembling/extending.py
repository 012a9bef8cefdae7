"""What opens something saved: its plan, with what the caller adds (plugins, options, a backend), and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, cast

from attrs import evolve

from andes_sdk.assembling import assembly, discovery
from andes_sdk.errors import AndesError, AssemblyError, ConfigError, PlanError
from andes_sdk.files import FolderFiles
from andes_sdk.plan import Plan, PluginPlan
from andes_sdk.types import Files

if TYPE_CHECKING:
    from andes_sdk.assembling.assembly import Assembly, PluginItem
    from andes_sdk.types import Tokenizer


class Copied(Files, Protocol):
    """Files inside another file, for `open_tokenizer`."""

    def copy(self, folder: Path) -> list[Path]:
        """Write all of them into a folder."""


BackendItem = str | Mapping[str, Mapping[str, Any]]
"""A backend's name, or {name: options} of the plugin of that name."""

BY_NAME = "by name"
"""Stands for the distribution of a plugin that assembly is going to look up."""


def extended(
    plan: Plan, plugins: Sequence[PluginItem] = (), *, backend: BackendItem | None = None
) -> tuple[Plan, tuple[object, ...]]:
    """A plan with more plugins -> (plan for `Pipeline.from_plan`, the plugin objects among `plugins`).

    Args:
        plugins: names, `{name: options}` and objects. Options of a plugin that the plan has replace its options of the
            same name; an object takes the whole place of the plugin of its name.
        backend: None keeps the plan's. The plugin of that name is added where the list lacks it.

    Raises:
        AssemblyError: `plugins` is no list of plugins. PlanError: one of them is listed twice.
    """
    chosen, items = _backend(plan, plugins, backend)
    errors: list[AndesError] = []
    given = list(assembly.listed(items, errors))
    if errors:
        raise AssemblyError("cannot assemble the pipeline", errors)
    merged, objects = {p.name: p for p in plan.plugins}, []
    added: set[str] = set()
    for target, options in given:
        name = target if isinstance(target, str) else type(target).__name__.lower()
        if name in added:
            raise PlanError("is listed twice", who=name, fix="list each plugin once")
        added.add(name)
        if isinstance(target, str):
            old = merged.get(name, PluginPlan(name=name))
            merged[name] = evolve(old, options={**old.options, **options}, distribution=old.distribution or BY_NAME)
        else:
            merged[name] = PluginPlan(name=name)
            objects.append(target)
    return evolve(plan, plugins=tuple(merged.values()), backend=chosen), tuple(objects)


def _backend(
    plan: Plan, plugins: Sequence[PluginItem], backend: BackendItem | None
) -> tuple[str, Sequence[PluginItem]]:
    if backend is None or isinstance(backend, str):
        name, options = backend or plan.backend, None
    elif isinstance(backend, Mapping) and len(backend) == 1:
        ((name, options),) = backend.items()
    else:
        raise ConfigError(f"expected a name, got {backend!r}", who="backend", fix='write "numba", or {"numba": {…}}')
    if isinstance(plugins, str | Mapping) or not isinstance(plugins, Sequence):
        return name, plugins  # told apart, and refused, where lists are read
    keys = {next(iter(p), "") if isinstance(p, Mapping) else p for p in plugins if isinstance(p, str | Mapping)}
    named = {*plan.names, *keys, *(type(p).__name__.lower() for p in plugins if not isinstance(p, str | Mapping))}
    if options is not None or (name != "torch" and name not in named and discovery.exists(name)):
        return name, [*plugins, {name: options or {}}]
    return name, plugins


def open_tokenizer(assembly: Assembly, files: FolderFiles | Copied | None = None) -> Tokenizer:
    """The tokenizer that stored files hold; without any the one that goes with the plugins.

    Plugins that want a folder get one: the files' own, or a temporary one with a copy of them.
    """

    def built(folder: Path | None) -> Tokenizer:
        return cast("Tokenizer", assembly.slot("tokenizer", folder=folder, files=files))

    if files is None or isinstance(files, FolderFiles):
        return built(None if files is None else files.folder)
    if not any("folder" in hook.argnames for hook in assembly.manager.hook.andes_tokenizer.get_hookimpls()):
        return built(None)
    with TemporaryDirectory() as extracted:
        files.copy(Path(extracted))
        return built(Path(extracted))
