"""Random position replacement for image sequences: our reading of a sentence of the AndesVL report.

The report says that joint pre-training, while the context grows from 2K to 8K, uses random position replacement for
image sequences; the rule itself is not public. Ours, in the spirit of randomised positional encodings (Ruoss et al.
2023, arXiv 2305.16843): with probability `share`, for every run of n neighbouring image rows of a sample that begins at
position p, take the width L = min(round(span * n), n + room), draw n of the offsets 0..L-1 without replacement, sort
them, and give row j the position p + offset_j. What follows goes on at p + L. Text keeps its steps of one, rows keep
their order, and no position passes the model's limit: `room` is what the sample leaves of it.
So image rows meet distances that belong to larger pictures and longer contexts than the sample has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen

if TYPE_CHECKING:
    from andes_training.packing import Batch


@frozen(kw_only=True)
class Replacement:
    """How often, and how far.

    Attributes:
        share: probability that a sample's image rows get random positions.
        span: positions that a run of image rows may spread over, per row.
    """

    share: float
    span: float

    def apply(self, batch: Batch, *, image_token: int, limit: int, key: str) -> Batch:
        """The same pack with other positions; what is drawn depends on `key`, the epoch and a sample's place in it.

        Args:
            limit: positions that the model has.
        """
        if not self.share:
            return batch
        image = (batch.ids == image_token).tolist()
        positions = batch.positions.clone()
        start = 0
        places = zip(batch.extras["epoch"].tolist(), batch.extras["offset"].tolist(), strict=True)
        for segment, (epoch, offset) in zip(batch.attend.segments, places, strict=True):
            rows = image[start : start + segment.rows]
            rng = random.Random(f"positions/{key}/{epoch}/{offset}")
            if any(rows) and rng.random() < self.share:
                room = limit - segment.prefix - max(segment.branches, default=0)
                new = replaced(rows, segment.prefix, segment.branches, self.span, room, rng)
                positions[start : start + segment.rows] = torch.tensor(new)
            start += segment.rows
        return evolve(batch, positions=positions)


OFF = Replacement(share=0.0, span=2.0)


def replaced(
    image: Sequence[bool], prefix: int, branches: Sequence[int], span: float, room: int, rng: random.Random
) -> list[int]:
    """Positions of one sample's rows.

    Args:
        image: per row, whether it came from a picture.
        prefix, branches: rows of the shared prefix, and of the branches that each go on where it ends.
        room: how far the sample may grow.
    """
    positions, end, room = _run(image[:prefix], 0, span, room, rng)
    start = prefix
    for length in branches:
        more, _, _ = _run(image[start : start + length], end, span, room, rng)
        positions += more
        start += length
    return positions


def _run(image: Sequence[bool], start: int, span: float, room: int, rng: random.Random) -> tuple[list[int], int, int]:
    """Positions of rows in a row, the next position, and the room that is left."""
    positions: list[int] = []
    for picture, group in groupby(image):
        count = len(list(group))
        width = min(round(span * count), count + room) if picture else count
        offsets = sorted(rng.sample(range(width), count)) if width > count else range(count)
        positions += [start + offset for offset in offsets]
        start, room = start + width, room - (width - count)
    return positions, start, room
