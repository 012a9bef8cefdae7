"""Processes that share nothing with the one that starts them: for a plan to be rebuilt in, and for tests to kill.

Where the system can fork, they come from one that has loaded libraries and nothing else, which saves seconds each.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

from andes_sdk.plan import Plan
from andes_sdk.testing.require import Nonconformance, require

LIBRARIES = ["torch._dynamo", "transformers.modeling_utils", "andes_sdk.pipeline"]
"""Loaded before the fork; one that is missing is left out."""
SECONDS = 300
Made = tuple[str, str, str, Mapping[str, Any]]
"""A plugin given as an object: module, file, qualified name, options."""


def rebuilt(plan: Plan, objects: Sequence[Made]) -> str:
    """The plan of the pipeline that another process builds from a plan, as JSON.

    Raises:
        Nonconformance: that process fails.
    """
    with ProcessPoolExecutor(1, mp_context=_context(), initializer=_find, initargs=(sys.path,)) as pool:
        try:
            plan_again, error = pool.submit(_tried, plan, objects).result(SECONDS)
        except BrokenProcessPool:
            raise Nonconformance("another process dies when it rebuilds the plan") from None
    require(not error, f"another process fails to rebuild the plan: {error}")
    return plan_again


def start(code: str, arguments: Sequence[object], told: Path) -> BaseProcess:
    """Start what `python -c CODE ARGUMENTS` would run, on one thread; what it prints goes to a file.

    What it says on stderr goes to a file beside it, ending in `.err`. `pid`, `exitcode`, `kill` and `join` of what is
    returned are those of `multiprocessing`.
    """
    child: BaseProcess = _context().Process(target=_run, args=(code, [*map(str, arguments)], str(told)))
    child.start()
    return child


def _run(code: str, arguments: Sequence[str], told: str) -> None:
    import torch

    for number, path in ((1, told), (2, f"{told}.err")):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), number)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def _find(path: list[str]) -> None:
    """The same modules are found as by the one who asks."""
    sys.path[:] = path


def _tried(plan: Plan, objects: Sequence[Made]) -> tuple[str, str]:
    """The plan, and why there is none: not every error survives the way back."""
    try:
        return _rebuild(plan, objects), ""
    except Exception as error:
        return "", f"{type(error).__name__}: {error}"


def _rebuild(plan: Plan, objects: Sequence[Made]) -> str:
    import torch

    from andes_sdk import Pipeline, config

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plugins = []
    for module, file, qualified, options in objects:
        thing: Any = load(module, file)
        for part in qualified.split("."):
            thing = getattr(thing, part)
        plugins.append(config.structure(thing, options, qualified))
    return Pipeline.from_plan(plan, objects=plugins).plan.to_json()


def load(name: str, file: str) -> ModuleType:
    """A module by name, or by file where its name means nothing outside the test run."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
    spec = importlib.util.spec_from_file_location(name.rpartition(".")[2], file)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"no module {name!r}, and {file} cannot be loaded")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
