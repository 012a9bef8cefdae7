"""Every plugin: the class, its options, its metadata, its manners."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from andes_sdk import config
from andes_sdk.assembling import discovery
from andes_sdk.errors import AssemblyError, ConfigError
from andes_sdk.hookspecs import GROUP, HOOKS
from andes_sdk.plan import Plan
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import NotApplicable, require
from andes_sdk.types import Event

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "general"
HEAVY = ("torch", "transformers")

IMPORT = """
import importlib, importlib.util, sys
name, file, wanted = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
def load(name, file):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
    spec = importlib.util.spec_from_file_location(name.rpartition(".")[2], file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
"""Imports a module by name, or by file where its name means nothing outside the test run."""

LIGHT = IMPORT + "load(name, file); print(','.join(m for m in wanted if m in sys.modules))"
REBUILD = (
    IMPORT
    + """
import pickle, warnings
warnings.simplefilter("ignore")
plan, objects = pickle.loads(sys.stdin.buffer.read())
from andes_sdk import Pipeline, config
def made(module, file, qualified, options):
    thing = load(module, file)
    for part in qualified.split("."):
        thing = getattr(thing, part)
    return config.structure(thing, options, qualified)
print(Pipeline.from_plan(plan, objects=[made(*o) for o in objects]).plan.to_json())
"""
)


def _python(code: str, cls: type, extra: str = "", data: bytes = b"") -> str:
    """Run code in a fresh interpreter that finds the same modules -> what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, cls.__module__, _file_of(cls), extra]
    done = subprocess.run(command, input=data, capture_output=True, env=environment, timeout=300)
    require(done.returncode == 0, f"a fresh interpreter fails: {done.stderr.decode(errors='replace')[-600:]}")
    return done.stdout.decode().strip()


def _file_of(cls: type) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", "") or "")


def _fields(subject: Subject) -> list[attrs.Attribute[Any]]:
    return [f for f in attrs.fields(attrs.resolve_types(subject.cls)) if f.init]


@check(KIND, "importing it loads neither torch nor transformers")
def _light(subject: Subject) -> None:
    if not _file_of(subject.cls):
        raise NotApplicable("its module has no file")
    loaded = _python(LIGHT, subject.cls, ",".join(HEAVY))
    require(not loaded, f"importing {subject.cls.__module__} loads {loaded}: import it inside the hook")


@check(KIND, "is a frozen attrs class with keyword options, hashed by identity")
def _frozen(subject: Subject) -> None:
    cls = subject.cls
    advice = "decorate it with attrs.frozen(eq=False, kw_only=True)"
    require(attrs.has(cls), f"{cls.__name__} is no attrs class: {advice}")
    require(all(f.kw_only for f in attrs.fields(cls) if f.init), f"options can be given by position: {advice}")
    one, two = subject.plugin(), subject.plugin()
    require(one != two and hash(one) == object.__hash__(one), f"objects compare or hash by value: {advice}")
    for name in [f.name for f in attrs.fields(cls)] or ["anything"]:
        try:
            setattr(one, name, getattr(one, name, None))
        except (attrs.exceptions.FrozenInstanceError, AttributeError):
            continue
        require(False, f"{name} can be assigned: {advice}")


@check(KIND, "states a contract that this core speaks")
def _contract(subject: Subject) -> None:
    discovery.check_contract(getattr(subject.cls, "contract", None), subject.name)
    names = {f.name for f in attrs.fields(subject.cls)}
    require("contract" not in names, "contract is an option: write it without a type")


@check(KIND, "every option has a type and a help text")
def _described(subject: Subject) -> None:
    for f in _fields(subject):
        require(f.type is not None, f"option {f.name!r} has no type")
        text = f.metadata.get("help", "")
        require(isinstance(text, str) and text.strip(), f'option {f.name!r} has no help: metadata={{"help": "…"}}')


@check(KIND, "every method named andes_ is a hook, and there is one")
def _spelled(subject: Subject) -> None:
    named = [n for n in dir(subject.cls) if n.startswith("andes_")]
    for name in named:
        require(name in HOOKS, f"{name} is no hook: {config.suggestion(name, HOOKS)}")
    require(named, f"it implements no hook: {', '.join(HOOKS)}")


@check(KIND, "every hook is marked with hookimpl")
def _marked(subject: Subject) -> None:
    for name in subject.hooks:
        require(hasattr(getattr(subject.cls, name), "andes_impl"), f"{name} lacks @hookimpl: it would never be called")


@check(KIND, "the docstring says what it is and shows its shortest use")
def _documented(subject: Subject) -> None:
    text = subject.cls.__dict__.get("__doc__") or ""
    require(text and not text.startswith("Method generated by attrs"), "the class has no docstring")
    require("from_plugins" in text, 'the docstring shows no use: "Shortest use: `Pipeline.from_plugins([...])`"')


@check(KIND, "an unknown option is refused")
def _unknown(subject: Subject) -> None:
    _refused(subject, "no_such_option", 1)


@check(KIND, "an option of the wrong type is refused")
def _mistyped(subject: Subject) -> None:
    typed = [f for f in _fields(subject) if f.type not in (object, Any, None)]
    if not typed:
        raise NotApplicable("it has no typed options")
    for f in typed:
        _refused(subject, f.name, object())


def _refused(subject: Subject, name: str, value: object) -> None:
    try:
        config.structure(subject.cls, {**subject.options, name: value}, subject.name)
    except AssemblyError as group:
        found = "; ".join(str(e) for e in group.exceptions)
        require(all(isinstance(e, ConfigError) for e in group.exceptions), f"raises other errors: {found}")
        return
    require(False, f"{name}={value!r} is accepted")


@check(KIND, "assembles into a pipeline")
def _assembles(subject: Subject) -> None:
    plan = subject.pipe.plan
    own = next(p for p in plan.plugins if p.name == subject.name)
    require(
        set(own.hooks) == set(subject.hooks), f"the plan knows the hooks {own.hooks}, the class has {subject.hooks}"
    )


@check(KIND, "options survive the plan as JSON")
def _plain(subject: Subject) -> None:
    plan = Plan.from_dict(json.loads(subject.pipe.plan.to_json()))
    require(plan == subject.pipe.plan, "the plan read back from JSON is another")
    own = next(p for p in plan.plugins if p.name == subject.name)
    first: Any = subject.plugin()
    again: Any = config.structure(subject.cls, own.options, subject.name)
    for f in _fields(subject):
        a, b = getattr(first, f.name), getattr(again, f.name)
        require(a == b, f"option {f.name!r} comes back from the plan as {b!r}, it was {a!r}")


@check(KIND, "the plan rebuilds in another process")
def _elsewhere(subject: Subject) -> None:
    pipe = subject.pipe
    objects = []
    given = [p for p in pipe._assembly.manager.get_plugins() if not _distribution(pipe.plan, p)]
    for plugin in given:
        cls = type(plugin)
        if not _findable(cls):
            raise NotApplicable(f"{cls.__qualname__} cannot be found by its name in a file")
        objects.append((cls.__module__, _file_of(cls), cls.__qualname__, config.plain(plugin)))
    printed = _python(REBUILD, subject.cls, data=pickle.dumps((pipe.plan, objects)))
    require(printed == pipe.plan.to_json(), "the plan rebuilt in another process is another")


def _findable(cls: type) -> bool:
    thing: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        thing = getattr(thing, part, None)
    return thing is cls and bool(_file_of(cls))


def _distribution(plan: Plan, plugin: Any) -> str:
    owners = {p.name: p.distribution for p in plan.plugins}
    return next((d for n, d in owners.items() if d and discovery.load(n)[0] is type(plugin)), "")


@check(KIND, "two pipelines share no module and no memory")
def _separate(subject: Subject) -> None:
    one, two = subject.pipeline(), subject.pipeline()
    shared = {id(m) for m in one.model.modules()} & {id(m) for m in two.model.modules()}
    names = [type(m).__name__ for m in one.model.modules() if id(m) in shared]
    require(not shared, f"two pipelines share the modules {', '.join(names[:5])}")
    memory = {t.data_ptr() for t in one.model.state_dict().values() if t.numel()}
    lost = [n for n, t in two.model.state_dict().items() if t.numel() and t.data_ptr() in memory]
    require(not lost, f"two pipelines share the tensors {', '.join(lost[:5])}")
    for part in ("cache_policy", "decoder"):
        if f"andes_{part}" in subject.hooks:
            attribute = "policy" if part == "cache_policy" else part
            require(getattr(one, attribute) is not getattr(two, attribute), f"two pipelines share their {part}")


@check(KIND, "what one pipeline computes does not depend on another")
def _independent(subject: Subject) -> None:
    from andes_sdk.testing.probe import changed, probe

    samples = getattr(subject.cls, "samples", ()) if "andes_training_stages" in subject.hooks else ()
    first = probe(subject.pipeline(), samples=samples)
    busy = subject.pipeline()
    changed(busy)
    probe(busy, number=1, samples=samples)
    again = probe(subject.pipeline(), samples=samples)
    for name, value in first.items():
        require(again[name] == value, f"{name} differs once another pipeline has been used")


@check(KIND, "its distribution registers it")
def _registered(subject: Subject) -> None:
    if not subject.registered:
        raise NotApplicable("it was given as an object, not by name")
    require(subject.distribution and subject.version, f"no distribution and version stand behind it in group {GROUP!r}")


@check(KIND, "the list of plugins shows it without importing it")
def _listed(subject: Subject) -> None:
    if not subject.registered:
        raise NotApplicable("it was given as an object, not by name")
    row = next(info for info in discovery.installed() if info.name == subject.name)
    require(row.status == "ok", f"its status is {row.status!r}")
    wanted = {HOOKS[h] for h in subject.hooks} - {"check", "explain", "event"} or {HOOKS[h] for h in subject.hooks}
    require(set(row.kind.split(", ")) == wanted, f"its kind is shown as {row.kind!r}, its hooks are {sorted(wanted)}")
    stated = getattr(subject.cls, "contract", None)
    require(row.contract == stated, f"its contract is shown as {row.contract!r}, it states {stated!r}")


@check("check", "says nothing about its own pipeline, and speaks in sentences")
def _problems(subject: Subject) -> None:
    plugin = subject.plugin()
    said = list(plugin.andes_check(plan=subject.pipe.plan) or [])
    require(not said, f"refuses the pipeline it stands in: {said}")
    alone = Plan(plugins=tuple(p for p in subject.pipe.plan.plugins if p.name == subject.name))
    for text in plugin.andes_check(plan=alone) or []:
        require(isinstance(text, str) and text.strip(), f"a problem is {text!r}, not a sentence")


@check("explain", "facts are texts")
def _facts(subject: Subject) -> None:
    plugin = subject.plugin()
    told = plugin.andes_explain(plan=subject.pipe.plan)
    require(isinstance(told, Mapping) and told, f"andes_explain returned {told!r}, not a mapping with facts")
    for key, value in told.items():
        require(
            isinstance(key, str) and isinstance(value, str) and key and value, f"fact {key!r}: {value!r} is no text"
        )


@check("event", "an event of an unknown kind is passed over")
def _events(subject: Subject) -> None:
    plugin = subject.plugin()
    require(plugin.andes_event(event=Event(kind="kit-unknown")) is None, "andes_event returned something")
