"""Stage `reading`: the vision encoder learns which characters each patch of a page shows.

A small encoder that learns everything at once from questions and answers does not learn to read: an answer says little
about each patch. Here every patch has a target of its own. A linear head over the encoder's rows names, for the
characters whose centres lie in a patch, one class per slot, in reading order; empty slots are the class 0. The head
exists for the length of the stage and is thrown away.

A data line is as any other, with `"glyphs": [["A", x, y], …]`: characters and their centres, x and y as shares of the
picture's width and height.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.feed import packed
from attrs import evolve, frozen
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from andes_sdk.errors import TrainingError

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position

ALPHABET = "".join(map(chr, [*range(33, 127), *range(161, 384)]))
"""Characters told apart: printable ASCII and Latin letters with accents. Others share one class."""

CLASSES = len(ALPHABET) + 2
EMPTY, OTHER = 0, CLASSES - 1
BINS = 32
"""Columns, and rows, that a picture is divided into for the place of a patch."""
_CLASS = {character: number for number, character in enumerate(ALPHABET, 1)}
HEAD = "reader"
"""The head's name in the model during the stage."""


@frozen(kw_only=True)
class ReadingStage:
    """Trains the vision encoder to read.

    Attributes:
        rate: learning rate of the encoder and of the head.
        slots: characters told apart in one patch.
        place_weight: of the loss of a patch's place beside that of its characters.
    """

    rate: float
    slots: int
    place_weight: float = 0.3
    name: str = "reading"
    folder: str = "reading"

    def put_in(self, model: Model) -> None:
        """Add the head."""
        head = nn.Linear(model.vision.width, self.slots * CLASSES + 2 * BINS)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        model.add_module(HEAD, head.to(model.device))

    def rates(self, model: Model) -> Mapping[str, float]:
        """The encoder and the head."""
        return {"vision_encoder": self.rate, HEAD: self.rate}

    def save(self, model: Model, folder: Path) -> None:
        """Nothing: what was learnt lies in the encoder."""

    def take_out(self, model: Model) -> None:
        """Remove the head."""
        delattr(model, HEAD)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs, with a class for every slot of every patch.

        Raises:
            TrainingError: a line without glyphs, with several pictures, or whose file's recipe changes its pictures.
        """
        for sample in {s.source.path: s for s in _one_of_each(run.samples)}.values():
            if changed := [n for n in ("flip", "rotate", "shift") if getattr(sample.source, n)]:
                why, fix = "glyphs would stand elsewhere", f"leave out {', '.join(changed)}"
                raise TrainingError("pictures of glyphs cannot be changed", who=sample.where, why=why, fix=fix)
        merge = run.pipeline.model.vision.merge
        for position, batch in packed(run):
            images = batch.media.get("image")
            indices = batch.extras["sample"].tolist()
            if images is None or len(images.sizes) != len(indices):
                raise TrainingError(
                    "does not show one picture", who=run.samples[indices[0]].where, fix="put one into it"
                )
            targets = [
                glyph_classes(sample.entry.get("glyphs"), grid, merge, self.slots, sample.where)
                for sample, grid in zip((run.samples[i] for i in indices), images.sizes, strict=True)
            ]
            yield position, evolve(batch, extras={**batch.extras, "glyphs": torch.cat(targets).reshape(-1)})

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """-> (mean cross-entropy of a slot, and of a place, in nats; shares of characters and places named right)."""
        images = batch.media["image"]
        rows = model.vision_encoder(images.data.to(model.dtype), images.sizes)
        named = getattr(model, HEAD)(rows).float()
        scores, places = named[:, : -2 * BINS].reshape(-1, CLASSES), named[:, -2 * BINS :].reshape(-1, BINS)
        wanted = torch.cat([place_classes(grid, model.vision.merge) for grid in images.sizes]).reshape(-1)
        wanted = wanted.to(places.device)
        placed = float((places.detach().argmax(1) == wanted).float().mean())
        targets = batch.extras["glyphs"]
        right = scores.detach().argmax(1) == targets
        there = targets != EMPTY
        read = float(right[there].float().mean()) if bool(there.any()) else 1.0
        # an empty slot is easy and there are many: together they weigh as much as the characters
        losses = cross_entropy(scores, targets, reduction="none")
        parts = [losses[mask].mean() for mask in (there, ~there) if bool(mask.any())]
        loss = torch.stack(parts).mean() + self.place_weight * cross_entropy(places, wanted)
        return loss, {"read": read, "placed": placed}


def _one_of_each(samples: Sequence[Any]) -> Iterator[Any]:
    """One sample of each file: their options for pictures are the file's."""
    seen: set[object] = set()
    for index in range(len(samples)):
        source = samples.source_of(index) if hasattr(samples, "source_of") else samples[index].source
        if source.path not in seen:
            seen.add(source.path)
            yield samples[index]


def place_classes(grid: Sequence[int], merge: int) -> Tensor:
    """(h*w, 2) column and row, of `BINS`, of each patch of a picture, patches in blocks of `merge` x `merge`."""
    h, w = grid
    rows, columns = torch.arange(h) * BINS // h, torch.arange(w) * BINS // w
    cells = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], 2)
    blocks = cells.view(h // merge, merge, w // merge, merge, 2).transpose(1, 2)
    return blocks.reshape(h * w, 2)


def glyph_classes(glyphs: Any, grid: Sequence[int], merge: int, slots: int, where: str) -> Tensor:
    """Characters and their centres -> (h*w, slots) classes, patches in blocks of `merge` x `merge`.

    Raises:
        TrainingError: `glyphs` is not a list of [character, x, y] with shares from 0 to 1.
    """
    h, w = grid
    if not isinstance(glyphs, list):
        fix = 'write "glyphs": [["A", 0.25, 0.1], …]'
        raise TrainingError("the line has no glyphs", who=where, why=f"it holds {type(glyphs).__name__}", fix=fix)
    cells: dict[int, list[tuple[float, float, int]]] = {}
    for glyph in glyphs:
        match glyph:
            case [str(character), int() | float() as x, int() | float() as y] if 0 <= x <= 1 and 0 <= y <= 1:
                row, column = min(math.floor(y * h), h - 1), min(math.floor(x * w), w - 1)
                block = (row // merge) * (w // merge) + column // merge
                place = merge * merge * block + merge * (row % merge) + column % merge
                cells.setdefault(place, []).append((y, x, _CLASS.get(character, OTHER)))
            case _:
                fix = "write [character, x, y], shares of width and height from 0 to 1"
                raise TrainingError("a glyph is not written as one", who=where, why=repr(glyph)[:80], fix=fix)
    classes = torch.full((h * w, slots), EMPTY)
    for place, found in cells.items():
        # characters of one line differ by little in height: by rows of half a patch, then from left to right
        found.sort(key=lambda g: (math.floor(g[0] * h * 2), g[1]))
        classes[place, : len(found)] = torch.tensor([c for _, _, c in found[:slots]])
    return classes
