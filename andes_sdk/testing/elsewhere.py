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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        Nonconformance: that process fails, dies, or takes longer than `SECONDS`.
    """
    here, there = multiprocessing.Pipe(duplex=False)
    with here, _started(_rebuild, plan, objects, there):
        there.close()
        if not here.poll(SECONDS):
            raise Nonconformance(f"another process has not rebuilt the plan after {SECONDS} s")
        try:
            again, error = here.recv()
        except EOFError:
            raise Nonconformance("another process dies when it rebuilds the plan") from None
    require(not error, f"another process fails to rebuild the plan: {error}")
    return str(again)


@contextmanager
def started(code: str, arguments: Sequence[object], told: Path) -> Iterator[BaseProcess]:
    """Run what `python -c CODE ARGUMENTS` would, torch on one thread; it is killed at the end of the block.

    What it prints goes to the file `told`, and what it says on stderr to one beside it, ending in `.err`.
    """
    with _started(_run, code, [*map(str, arguments)], str(told)) as child:
        yield child


@contextmanager
def _started(function: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LIBRARIES)
    else:
        context = multiprocessing.get_context("spawn")
    child: BaseProcess = context.Process(target=_in, args=(dict(os.environ), function, *arguments))
    with _no_script():
        child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()


@contextmanager
def _no_script() -> Iterator[None]:
    """A child would run the script that is running here, unless that has a guard."""
    main, hidden = sys.modules["__main__"], {}
    for name in ("__file__", "__spec__"):
        if hasattr(main, name):
            hidden[name] = getattr(main, name)
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


def _in(environment: Mapping[str, str], function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a child, in the environment of the one who started it."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    function(*arguments)


def _run(code: str, arguments: Sequence[str], told: str) -> None:
    for number, path in ((1, told), (2, f"{told}.err")):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()


def _rebuild(plan: Plan, objects: Sequence[Made], there: Any) -> None:
    """Send the plan, and why there is none: not every error survives the way back."""
    from andes_sdk import Pipeline, config

    try:
        plugins = []
        for module, file, qualified, options in objects:
            thing: Any = load(module, file)
            for part in qualified.split("."):
                thing = getattr(thing, part)
            plugins.append(config.structure(thing, options, qualified))
        there.send((Pipeline.from_plan(plan, objects=plugins).plan.to_json(), ""))
    except BaseException as error:
        there.send(("", f"{type(error).__name__}: {error}"))


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
