"""Training samples: JSON Lines of OpenAI-style messages, read in an order that depends on seed and epoch alone.

A line is `{"messages": [...]}`, or `{"conversations": [[...], [...]]}` for several about the same pictures.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen
from PIL import Image

from andes_sdk.errors import AndesError, TrainingError
from andes_sdk.images import load_image
from andes_sdk.training.packing import Row, make_row

if TYPE_CHECKING:
    from andes_sdk.processing import Processor
    from andes_sdk.training.recipe import DataRecipe

T = TypeVar("T")
Augmentation = Callable[[Image.Image], Image.Image]


@frozen
class Sample:
    """One line of a data file.

    Attributes:
        conversations: message lists about the same pictures.
        where: `file:line`, for messages.
        folder: what relative picture paths are relative to.
        source: the recipe's options for this file.
    """

    conversations: Sequence[Sequence[Mapping[str, Any]]]
    where: str
    folder: Path
    source: DataRecipe


def read_samples(source: DataRecipe, folder: Path) -> list[Sample]:
    """Every sample of a file.

    Raises:
        TrainingError: a missing file, a line that is not JSON or not a sample; with file and line.
    """
    path = folder / source.path
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            "the data cannot be read", who=str(path), why=str(error), fix="make it, or correct its path"
        ) from None
    samples = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise TrainingError("is not JSON", who=where, why=str(error), fix="correct or delete the line") from None
        samples.append(Sample(_conversations(entry, where), where, path.parent, source))
    if not samples:
        raise TrainingError("holds no sample", who=str(path), fix="write one JSON object per line")
    return samples * source.repeat


def _conversations(entry: Any, where: str) -> list[list[Any]]:
    if isinstance(entry, dict):
        many = entry.get("conversations", [entry["messages"]] if "messages" in entry else None)
        if isinstance(many, list) and many and all(isinstance(m, list) and m for m in many):
            return many
    raise TrainingError(
        "is not a sample", who=where, fix='write {"messages": [...]} or {"conversations": [[...], ...]}'
    )


def make_rows(
    samples: Sequence[Sample], processor: Processor, *, seed: int, epoch: int, start: int = 0
) -> Iterator[tuple[int, Row]]:
    """Samples of one epoch in their shuffled order, from offset `start` -> (offset of the next sample, row).

    Order and augmentation are keyed by (seed, epoch, sample), so a resumed run sees exactly what it would have seen.
    """
    order = list(range(len(samples)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    for offset in range(start, len(order)):
        index = order[offset]
        sample = samples[index]
        try:
            yield offset + 1, _row(sample, processor, random.Random(f"{seed}/{epoch}/{index}"))
        except TrainingError:
            raise
        except AndesError as error:
            raise TrainingError(
                "cannot be used for training", who=sample.where, why=str(error), fix=error.fix
            ) from error


def _row(sample: Sample, processor: Processor, rng: random.Random) -> Row:
    chosen = list(sample.conversations)
    if 0 < sample.source.questions < len(chosen):
        chosen = rng.sample(chosen, sample.source.questions)
    augment = _augmentation(sample.source, rng)
    pictures: dict[str, Any] = {}
    prepared = [
        processor.prepare([_with_pictures(m, sample, augment, pictures) for m in conversation], generate=False)
        for conversation in chosen
    ]
    if any(p.grids != prepared[0].grids for p in prepared):
        raise TrainingError(
            "its conversations have different pictures", who=sample.where, fix="write one line per picture"
        )
    if not any(bool(p.supervised.any()) for p in prepared if p.supervised is not None):
        raise TrainingError("has no assistant text to learn from", who=sample.where, fix="add an assistant message")
    return make_row(prepared)


def _augmentation(source: DataRecipe, rng: random.Random) -> Augmentation:
    """The random changes that a file's recipe allows, the same for every picture of one sample."""
    mirror = source.flip and rng.random() < 0.5
    angle = rng.uniform(-source.rotate, source.rotate)
    dx, dy = (rng.uniform(-source.shift, source.shift) for _ in range(2))

    def augment(image: Image.Image) -> Image.Image:
        if source.rotate or source.shift:
            move = (dx * image.width, dy * image.height)
            image = image.rotate(angle, Image.Resampling.BILINEAR, translate=move)  # type: ignore[arg-type]
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image

    return augment


def _with_pictures(message: Any, sample: Sample, augment: Augmentation, pictures: dict[str, Any]) -> Any:
    """Replace picture references by loaded pictures: relative to the file, each read once, and augmented."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    content = []
    for part in message["content"]:
        reference = None
        if isinstance(part, dict) and part.get("type") == "image_url":
            url = part.get("image_url")
            reference = url.get("url") if isinstance(url, dict) else url
        if not isinstance(reference, str):
            content.append(part)
            continue
        if reference not in pictures:
            local = reference.startswith(("data:", "http:", "https:", "file:"))
            pictures[reference] = augment(load_image(reference if local else sample.folder / reference))
        content.append({"type": "image", "image": pictures[reference]})
    return {**message, "content": content}


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items, prepared in a background thread while the caller computes."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        end = object()
        pending = [pool.submit(next, iterator, end) for _ in range(depth)]
        while (item := pending.pop(0).result()) is not end:
            pending.append(pool.submit(next, iterator, end))
            yield item  # type: ignore[misc]
