"""What a stage that makes its own batches is told about the run it is part of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import field, frozen

from andes_sdk.types import Position
from andes_training.data.bad import BadSamples

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import TrainingStage
    from andes_training.reading import Sample
    from andes_training.recipe import StageRecipe


def _nothing() -> None:
    """Weights that are not sharded are up to date."""


@frozen(kw_only=True, eq=False)
class StageRun:
    """One stage of a run, as `FeedingStage.feed` sees it.

    Random numbers of a feed come from generators of its own, keyed by `seed` and its position: torch's global generator
    belongs to the loop, which seeds it anew before each optimizer step.

    Attributes:
        pipeline: its `model` is what is being trained (under sharding: as of the stage's start or the last `gather()`).
        recipe: the stage's part of the recipe.
        stage: the stage itself.
        samples: the stage's data; `entry`, `where`, `folder` and `source` of each.
        position: where to begin.
        seed: the recipe's.
        index: number of the stage in the recipe.
        out: the run's folder, for what must survive a restart.
        device: where batches go.
        rank, world: this process among all.
        tell: report an event of one's own, (kind, values).
        bad: counts the samples that cannot be used; a feed of one's own hands them to `bad.take`.
        gather: bring `pipeline.model` up to date under sharding; every process must call it at the same batch, from
            the thread that iterates over the feed.
        autocast: a context with the precision that the loss is computed in.
    """

    pipeline: Pipeline
    recipe: StageRecipe
    stage: TrainingStage
    samples: Sequence[Sample]
    position: Position = field(factory=Position)
    seed: int = 0
    index: int = 0
    out: Path = field(factory=Path)
    device: torch.device = field(factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    tell: Callable[[str, Mapping[str, Any]], None] = field(default=lambda kind, values: None)
    bad: BadSamples = field(factory=BadSamples)
    gather: Callable[[], None] = field(default=_nothing)
    autocast: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)
