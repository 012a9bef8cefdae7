"""`pipe.evaluate(name)`: a benchmark of the pipeline's plugins."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from andes_sdk.errors import AndesError, ConfigError, PluginBroken

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def evaluate(pipeline: Pipeline, name: str, limit: int | None = None) -> dict[str, float]:
    """Run a benchmark -> its named figures.

    Args:
        limit: of how many items at most, the first ones; None: all.

    Raises:
        ConfigError: no plugin of this pipeline brings it, or a limit below 1.
        PluginBroken: it fails, or returns what are no finite figures.
    """
    benchmark = pipeline.pick("benchmarks", name)
    if limit is not None and limit < 1:
        raise ConfigError(f"a limit of {limit}", who=name, fix="give 1 or more, or none")
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
