"""What a training stage learns from, in small: its plugin's own samples, runs and batches for checks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from andes_sdk.testing.material import conversation
from andes_sdk.types import FeedingStage
from andes_training.data.samples import Sample
from andes_training.packing import collate
from andes_training.reading import stage_maker
from andes_training.recipe import DataRecipe, StageRecipe
from andes_training.run import StageRun

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.testing.registry import DataLines
    from andes_sdk.types import Position


def stage_samples(entries: DataLines, count: int) -> list[Sample]:
    """The first `count` entries as samples."""
    entries = entries or [{"messages": conversation(i, answer=True)} for i in range(count)]
    source = DataRecipe(path=Path("samples.jsonl"))
    return [Sample(e, f"samples.jsonl:{i}", Path(), source) for i, e in enumerate(entries[:count], 1)]


@contextmanager
def stage_run(pipe: Pipeline, stage: Any, entries: DataLines, count: int) -> Iterator[StageRun]:
    """A run of one stage on a few samples, as the loop would describe it."""
    recipe = StageRecipe(stage=stage.name, data=[], steps=1, max_tokens=1 << 20, max_patches=1 << 20)
    with TemporaryDirectory() as out:
        samples = stage_samples(entries, count)
        yield StageRun(pipeline=pipe, recipe=recipe, stage=stage, samples=samples, out=Path(out))


def fed(stage: FeedingStage[Any], run: StageRun, count: int) -> list[tuple[Position, Any]]:
    """The first `count` batches of a stage's own feed."""
    feed = stage.feed(run)
    found = list(islice(feed, count))
    if (close := getattr(feed, "close", None)) is not None:
        close()
    return found


def stage_batches(pipe: Pipeline, stage: Any, entries: DataLines = (), count: int = 2) -> list[Any]:
    """Batches of a stage's own feed; without one, `count` samples, each as a batch, and then all in one pack."""
    with stage_run(pipe, stage, entries, count) as run:
        if isinstance(stage, FeedingStage):
            return [batch for _, batch in fed(stage, run, count)]
        maker = stage_maker(pipe, run.recipe, stage)
        rows = [maker.row(sample, random.Random(0)) for sample in run.samples]
    return [*(collate([row]) for row in rows), collate(rows)]
