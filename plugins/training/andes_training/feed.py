"""The usual feed: samples in an order of (seed, epoch), packed to a budget, prepared ahead of the loop.

Every process plans the same packs and takes its share of them: in each round of `world` packs, number `rank`. So a
position means the same to every process, and to a run that goes on with another number of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from attrs import evolve

from andes_sdk.types import Position
from andes_training.data.samples import Samples
from andes_training.packing import Batch, Row, collate, pack
from andes_training.reading import ahead, make_rows, stage_maker
from andes_training.run import StageRun


def packed(run: StageRun) -> Iterator[tuple[Position, Batch]]:
    """Packs for ever, each with the position right after its round.

    `extras["sample"]` are indices of `run.samples`, `extras["epoch"]` and `extras["offset"]` their places in the order.

    Raises:
        TrainingError: a sample that cannot be used, with file and line, where its file's `on_error` says so.
    """
    if isinstance(run.samples, Samples):
        samples = measured(run, run.samples)
        run = evolve(run, samples=samples)
        run.tell("data", {"sources": samples.facts()})
    return ahead(_share(run))


def measured(run: StageRun, samples: Samples) -> Samples:
    """A run's samples, knowing what an epoch takes of them."""
    maker = stage_maker(run.pipeline, run.recipe, run.stage)
    return samples.measured(run.seed, lambda s: len(maker.row(s, random.Random(run.seed)).ids))


def epoch_length(run: StageRun) -> int:
    """Samples of an epoch."""
    return sum(measured(run, run.samples).shares()) if isinstance(run.samples, Samples) else len(run.samples)


def _share(run: StageRun) -> Iterator[tuple[Position, Batch]]:
    packs = _packs(run)
    while True:
        group = [next(packs) for _ in range(run.world)]
        yield group[-1][0], collate(group[run.rank][1])


def _packs(run: StageRun) -> Iterator[tuple[Position, Sequence[Row]]]:
    """All packs of all processes."""
    epoch, start, recipe = run.position.epoch, run.position.offset, run.recipe
    maker = stage_maker(run.pipeline, run.recipe, run.stage)
    while True:
        stream = make_rows(
            run.samples, maker, seed=run.seed, epoch=epoch, start=start, workers=recipe.workers, bad=run.bad
        )
        for group in pack((row for _, row in stream), max_tokens=recipe.max_tokens, max_patches=recipe.max_patches):
            # not the number of rows: samples between them may have been skipped
            yield Position(epoch=epoch, offset=int(group[-1].extras["offset"]) + 1), group
        epoch, start = epoch + 1, 0
