"""Training samples to rows, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from attrs import evolve

from andes_sdk.assembling.building import build_processor, image_errors
from andes_sdk.errors import AssemblyError, TrainingError
from andes_sdk.types import ConversationStage, FeedingStage
from andes_training.data.bad import BadSample, BadSamples
from andes_training.data.rows import RowMaker, conversations_of
from andes_training.data.samples import Sample, Samples, check_mixture, stage_samples
from andes_training.data.shards import find_files

if TYPE_CHECKING:
    from andes_sdk.inputs.processor import Processor
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import TrainingStage
    from andes_training.packing import Row
    from andes_training.recipe import DataRecipe, Recipe, StageRecipe

__all__ = ["RowMaker", "Sample", "Samples", "ahead", "conversations_of", "make_rows", "read_samples", "stage_samples"]

T = TypeVar("T")
R = TypeVar("R")


def read_samples(source: DataRecipe, folder: Path) -> Samples:
    """The samples of one entry of a stage's data; see `stage_samples` for several.

    Raises:
        TrainingError: a file that is missing, damaged or empty.
    """
    return stage_samples([source], folder)


def check_stages(pipeline: Pipeline, recipe: Recipe) -> None:
    """Find out before the first step what a later stage would stop at: its data files, its options for pictures.

    Raises:
        TrainingError: a file that does not exist, or a contradictory mixture.
        AssemblyError: options of `image` that do not exist or do not fit.
    """
    for stage in recipe.stages:
        check_mixture(stage.data)
        check_mixture(stage.validation)
        _stage_image(pipeline, stage)
        for one in stage.eval:
            if one.data and not (place := recipe.folder / one.data).exists():
                fix = "make it, or correct eval.data"
                raise TrainingError("the data cannot be read", who=str(place), why="no such file or folder", fix=fix)
        for source in (*stage.data, *stage.validation):
            for path in find_files(recipe.folder / source.path):
                if not path.is_file():
                    raise TrainingError(
                        "the data cannot be read", who=str(path), why="no such file", fix="make it, or correct its path"
                    )


def refuse_blind(model: VisionLanguageModel, samples: Sequence[Sample], stage: str) -> None:
    """Refuse to train what only pictures, or other media, pass through on samples that show none.

    Raises:
        TrainingError: nothing would learn.
    """
    senses = ("vision_encoder.", "mlp.", "modalities.")
    if not all(name.startswith(senses) for name, p in model.named_parameters() if p.requires_grad):
        return
    kinds = frozenset({"image_url", *model.kinds})
    for index in range(len(samples)):
        try:
            if _shows(samples[index].entry, kinds):
                return
        except BadSample:  # counted when an epoch comes to it
            continue
    raise TrainingError(
        "nothing would learn",
        who=f"stage {stage!r}",
        why="it trains only what pictures and other media pass through, and no sample shows any",
        fix="give the language model a learning rate, or data with pictures",
    )


def _shows(value: Any, kinds: frozenset[str]) -> bool:
    """Whether plain data of a sample holds a part of one of these types."""
    if isinstance(value, Mapping):
        return value.get("type") in kinds or any(_shows(v, kinds) for v in value.values())
    return isinstance(value, list) and any(_shows(v, kinds) for v in value)


def stage_processor(pipeline: Pipeline, recipe: StageRecipe) -> Processor:
    """The pipeline's processor with the stage's own resolution.

    Raises:
        AssemblyError: every option of the stage's `image` that does not exist or does not fit.
    """
    if not recipe.image:
        return pipeline.processor
    return build_processor(pipeline.model, evolve(pipeline.plan, image=_stage_image(pipeline, recipe)))


def _stage_image(pipeline: Pipeline, recipe: StageRecipe) -> dict[str, Any]:
    image = {**pipeline.plan.image, **recipe.image}
    if errors := image_errors(image):
        raise AssemblyError(f"cannot configure stage {recipe.stage}", errors)
    return image


@runtime_checkable
class CheckingStage(Protocol):
    """A stage that makes its own batches, and says itself which lines it refuses. Optional, beside `FeedingStage`."""

    def line_check(self, pipeline: Pipeline, recipe: StageRecipe) -> Callable[[Sample], object]:
        """What `andes data check --recipe` asks of each line; raises `BadSample` where `feed` would refuse it."""


def stage_maker(pipeline: Pipeline, recipe: StageRecipe, stage: TrainingStage) -> RowMaker:
    """How the samples of a stage become rows: its conversations, its resolution, its limits, its own check."""
    conversations = stage.conversations if isinstance(stage, ConversationStage) else conversations_of
    answered = isinstance(stage, ConversationStage) or not isinstance(stage, FeedingStage)
    limits = recipe.max_tokens, recipe.max_patches
    check = stage.line_check(pipeline, recipe) if isinstance(stage, CheckingStage) else None
    return RowMaker(stage_processor(pipeline, recipe), conversations, *limits, answered=answered, check=check)


# ---------------------------------------------------------------- an epoch


def make_rows(
    samples: Sequence[Sample],
    maker: RowMaker | Processor,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 1,
    bad: BadSamples | None = None,
) -> Iterator[tuple[int, Row]]:
    """Samples of one epoch in their order, from offset `start` -> (offset of the next sample, row).

    A row's `extras` are `sample`, the sample's index, and `epoch` and `offset`, its place in the order. Order and
    augmentation are keyed by (seed, epoch, offset), so neither `workers` (threads) nor a restart changes anything.

    Args:
        maker: how a sample becomes a row; a processor stands for the usual way without limits.
        bad: counts samples that cannot be used and are skipped.

    Raises:
        BadSample: a sample that cannot be used, where its file's `on_error` is "fail".
        TrainingError: more bad samples than a file's `max_errors`, or no usable sample in a whole epoch.
    """
    bad = BadSamples() if bad is None else bad
    maker = maker if isinstance(maker, RowMaker) else RowMaker(maker)
    order = samples.order(seed, epoch) if isinstance(samples, Samples) else _plain_order(len(samples), seed, epoch)
    usable = start > 0
    offsets = range(start, len(order))
    for offset, made in zip(
        offsets, in_order(partial(_make, samples, order, maker, seed, epoch), offsets, workers), strict=True
    ):
        if isinstance(made, BadSample):
            bad.take(made, _source(samples, order[offset]), epoch=epoch, offset=offset)
            continue
        usable = True
        yield offset + 1, made
    if not usable:
        why, fix = f"skipped by reason: {bad.counts()}", "run `andes data check`"
        raise TrainingError("no sample of the stage can be used", why=why, fix=fix)


def _make(
    samples: Sequence[Sample], order: Sequence[int], maker: RowMaker, seed: int, epoch: int, offset: int
) -> Row | BadSample:
    try:
        row = maker.row(samples[order[offset]], random.Random(f"{seed}/{epoch}/{offset}"))
    except BadSample as error:
        return error
    place = {"sample": order[offset], "epoch": epoch, "offset": offset}
    return evolve(row, extras={name: torch.tensor(value) for name, value in place.items()})


def _source(samples: Sequence[Sample], index: int) -> DataRecipe:
    """The recipe of a sample's file; the sample itself may be what cannot be read."""
    return samples.source_of(index) if isinstance(samples, Samples) else samples[index].source


def _plain_order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """`map` on several threads: the same results in the same order, a few ahead."""
    if workers <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, prepared in a background thread while the caller computes."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        end = object()
        pending = [pool.submit(next, iterator, end) for _ in range(depth)]
        while (item := pending.pop(0).result()) is not end:
            pending.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]
