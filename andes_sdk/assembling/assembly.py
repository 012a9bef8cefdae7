"""From the user's list to a plugin manager: resolve, configure, count owners, check; all errors at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import pluggy

from andes_sdk import config
from andes_sdk.assembling import discovery
from andes_sdk.errors import AndesError, AssemblyError, ConfigError, DuplicateName, PlanError, PluginBroken, SlotError
from andes_sdk.hookspecs import COLLECTIONS, DEFAULTED, HOOKS, PROJECT, SLOTS, Hooks
from andes_sdk.plan import Plan, PluginPlan
from andes_sdk.reading import bounded
from andes_sdk.version import __version__

NO_MODALITY = frozenset({"type", "text", "image", "image_url"})
"""Keys of the parts of messages that are taken."""

PluginItem = str | Mapping[str, Mapping[str, Any]] | object


@attrs.frozen(eq=False)
class Assembly:
    """A plugin manager of its own, and the plan that made it.

    Attributes:
        collections: objects by collection and name. owners: which plugin brings each of them.
    """

    manager: pluggy.PluginManager
    plan: Plan
    collections: Mapping[str, Mapping[str, Any]]
    owners: Mapping[str, Mapping[str, str]]

    def slot(self, name: str, default: Callable[[], Any] | None = None, **arguments: Any) -> Any:
        """Ask the owner of a slot to build; `default` builds where a slot has one and nobody owns it."""
        hook = SLOTS[name]
        owner = self.plan.owner(hook)
        if not owner and default is not None:
            return default()
        with blaming(owner, hook):
            built = getattr(self.manager.hook, hook)(**arguments)
        if built is None:
            raise PluginBroken(f"{hook} returned nothing", who=owner, fix="return the object the hook's page describes")
        return built


@contextmanager
def blaming(plugin: str, hook: str) -> Iterator[None]:
    """An error inside that is not one of ours becomes one that names the plugin whose hook this is."""
    try:
        yield
    except AndesError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise PluginBroken(f"{hook} failed", who=plugin, why=why, fix="report it to the plugin's author") from error


def assemble(items: Sequence[PluginItem], *, slots_required: bool = True, **run: Any) -> Assembly:
    """Resolve and check a list of plugins.

    Args:
        items: names, `{name: options}` and plugin objects, mixed.
        slots_required: False for a plan that needs no model (a single plugin under test).
        run: the plan's other fields (backend, device, dtype, seed).

    Raises:
        AssemblyError: every problem of the list, before any weight is read.
    """
    errors: list[AndesError] = []
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    plans: list[PluginPlan] = []
    for item in listed(items, errors):
        _register(manager, item, plans, errors)
    incomplete = bool(errors)
    plan = Plan(plugins=tuple(plans), sdk=__version__, **run)
    errors += _slot_errors(plan, slots_required and not incomplete)
    collections, owners = _collect(manager, plan, errors)
    errors += [
        PluginBroken("cannot be the name of a modality", who=repr(name), fix="return a name such as 'audio'")
        for name in collections["modalities"]
        if not str(name).isidentifier() or name in NO_MODALITY
    ]
    if not incomplete:
        errors += _checks(manager, plan)
    if errors:
        raise AssemblyError("cannot assemble the pipeline", errors)
    return Assembly(manager, plan, collections, owners)


LIKE_THIS = 'write ["aimv2", "mlp", "qwen3"]'


def listed(items: Sequence[PluginItem], errors: list[AndesError]) -> Iterable[tuple[str | object, Mapping[str, Any]]]:
    """A user's list -> (name or object, options); what is neither goes to `errors`."""
    try:
        bounded(items)
    except ValueError as error:
        errors.append(ConfigError(f"the list of plugins holds {error}", fix=LIKE_THIS))
        return
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
        errors.append(ConfigError(f"expected a list of plugins, got {items!r}", fix=LIKE_THIS))
        return
    for index, item in enumerate(items):
        if isinstance(item, str):
            yield item, {}
        elif isinstance(item, Mapping):
            if len(item) != 1 or not all(isinstance(name, str) for name in item):
                what = f"item {index} has {len(item)} keys: {dict(item)!r}"
                errors.append(ConfigError(what, fix="write {name: options}"))
                continue
            ((name, options),) = item.items()
            if options is not None and not isinstance(options, Mapping):
                what = f"options of item {index} are {options!r}"
                errors.append(ConfigError(what, who=name, fix="write {name: {option: value}}"))
                continue
            yield name, options or {}
        else:
            yield item, {}


def _register(
    manager: pluggy.PluginManager,
    item: tuple[str | object, Mapping[str, Any]],
    plans: list[PluginPlan],
    errors: list[AndesError],
) -> None:
    target, options = item
    try:
        plugin, plan = _named(target, options) if isinstance(target, str) else _given(target)
    except AssemblyError as group:
        errors.extend(group.problems)
        return
    except AndesError as error:
        errors.append(error)
        return
    if any(p.name == plan.name for p in plans):
        errors.append(DuplicateName("is listed twice", who=plan.name, fix="list each plugin once"))
        return
    try:
        manager.register(plugin, plan.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        manager.unregister(name=plan.name)
        what = "does not fit the contract"
        why = str(error).splitlines()[0] if "unknown hook" in str(error) else " ".join(str(error).split())
        errors.append(PluginBroken(what, who=plan.name, why=why, fix=f"hooks: {', '.join(HOOKS)}"))
        return
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or []))
    plans.append(attrs.evolve(plan, hooks=hooks))


def _named(name: str, options: Mapping[str, Any]) -> tuple[object, PluginPlan]:
    cls, distribution, version = discovery.load(name)
    if not attrs.has(cls):
        what = "is not an attrs class"
        raise PluginBroken(what, who=name, fix="decorate it with attrs.frozen(eq=False, kw_only=True)")
    plugin = config.structure(cls, options, name)
    plan = PluginPlan(name=name, options=config.plain(plugin), distribution=distribution, version=version)
    return _hashable(plugin, name), plan


def _given(plugin: object) -> tuple[object, PluginPlan]:
    cls = type(plugin)
    name = cls.__name__.lower()
    if isinstance(plugin, type):
        what = f"{plugin.__name__} is a class"
        raise ConfigError(what, who=plugin.__name__, fix=f"pass an object: {plugin.__name__}()")
    if not attrs.has(cls):
        what = f"{plugin!r} is neither a name, nor {{name: options}}, nor a plugin object"
        raise ConfigError(what, fix="see `andes plugins`")
    discovery.check_contract(getattr(cls, "contract", None), name)
    return _hashable(plugin, name), PluginPlan(name=name, options=config.plain(plugin))


def _hashable(plugin: object, name: str) -> object:
    try:
        hash(plugin)
    except TypeError:
        what = "cannot be hashed"
        raise PluginBroken(what, who=name, fix="decorate it with attrs.frozen(eq=False, kw_only=True)") from None
    return plugin


def _slot_errors(plan: Plan, required: bool) -> list[AndesError]:
    errors: list[AndesError] = []
    for slot, hook in SLOTS.items():
        owners = [p.name for p in plan.plugins if hook in p.hooks]
        if len(owners) > 1:
            what = f"slot {slot!r} has {len(owners)} owners"
            errors.append(SlotError(what, who=" and ".join(owners), fix="keep one of them"))
        if not owners and required and slot not in DEFAULTED:
            what = f"slot {slot!r} has no owner"
            errors.append(SlotError(what, fix="add a plugin that provides it; `andes plugins` shows the kinds"))
    return errors


def _collect(
    manager: pluggy.PluginManager, plan: Plan, errors: list[AndesError]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    found: dict[str, dict[str, Any]] = {collection: {} for collection in COLLECTIONS}
    brought: dict[str, dict[str, str]] = {collection: {} for collection in COLLECTIONS}
    for collection, hook in COLLECTIONS.items():
        objects, owners = found[collection], brought[collection]
        for plugin in (p.name for p in plan.plugins if hook in p.hooks):
            try:
                made = list(getattr(manager.get_plugin(plugin), hook)())
                names = [m.name for m in made]
            except AndesError as error:
                errors.append(error)
                continue
            except Exception as error:
                errors.append(PluginBroken(f"{hook} failed", who=plugin, why=f"{type(error).__name__}: {error}"))
                continue
            for name, thing in zip(names, made, strict=True):
                if name in owners:
                    who = f"{owners[name]} and {plugin}"
                    what = f"both bring {name!r} to {collection}"
                    errors.append(DuplicateName(what, who=who, fix="keep one of them"))
                owners[name] = plugin
                objects[name] = thing
    return found, brought


def _checks(manager: pluggy.PluginManager, plan: Plan) -> list[AndesError]:
    errors: list[AndesError] = []
    for plugin in (p.name for p in plan.plugins if "andes_check" in p.hooks):
        try:
            said = manager.get_plugin(plugin).andes_check(plan=plan)  # type: ignore[union-attr]
            errors += [PlanError(text, who=plugin) for text in said or []]
        except Exception as error:
            errors.append(PluginBroken("andes_check failed", who=plugin, why=f"{type(error).__name__}: {error}"))
    return errors
