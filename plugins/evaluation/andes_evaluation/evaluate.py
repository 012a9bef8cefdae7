"""`pipe.evaluate(name)`: a benchmark of the pipeline's plugins, or a task of this package."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import AndesError, ConfigError, PluginBroken

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def evaluate(
    pipeline: Pipeline,
    name: str,
    limit: int | None = None,
    *,
    data: str | Path | None = None,
    together: int = 8,
    think: bool | None = None,
    **given: Any,
) -> dict[str, float]:
    """Score a pipeline -> named figures; for a task the main one first.

    Args:
        name: of a benchmark that a plugin brings, else of a task (`andes eval tasks`).
        limit: of how many items at most, the first ones; None: all.
        data: of a task: folder or file; None for the Hugging Face cache. together: items that are decoded together.
        think: thinking mode; None leaves it to the model. given: options of generation, such as max_tokens.

    Raises:
        ConfigError: neither a benchmark nor a task, or a limit below 1, or options that a benchmark does not take.
        InputError: a task's data that is not there, or not the task's.
        PluginBroken: a benchmark fails, or returns what are no finite figures.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit}", who=name, fix="give 1 or more, or none")
    if name not in pipeline.collection("benchmarks") and name.lower() in _tasks():
        return _task(pipeline, name, limit, None if data is None else Path(data), together, think, given)
    benchmark = pipeline.pick("benchmarks", name)
    if data is not None or think is not None or given:
        raise ConfigError("a benchmark takes a limit only", who=name, fix="leave out data, think and options")
    try:
        figures = dict(benchmark.run(pipeline, limit=limit))
    except AndesError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise PluginBroken("the benchmark failed", who=name, why=why, fix="report it to its author") from error
    wrong = {k: v for k, v in figures.items() if not isinstance(v, int | float) or not math.isfinite(v)}
    if wrong or not figures:
        raise PluginBroken(f"returned {wrong or figures!r}", who=name, fix="return finite figures by name")
    return {key: float(value) for key, value in figures.items()}


def _tasks() -> Any:
    from .tasks.catalogue import TASKS

    return TASKS


def _task(
    pipeline: Pipeline,
    name: str,
    limit: int | None,
    data: Path | None,
    together: int,
    think: bool | None,
    given: dict[str, Any],
) -> dict[str, float]:
    from .run import Settings
    from .suite import Suite

    suite = Suite.of([name], data, Settings(limit=limit, together=together, think=think, given=given))
    (outcome,) = suite.run(pipeline, model="")
    return {key: figure.value for key, figure in outcome.figures.items()}
