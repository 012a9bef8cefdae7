"""Places in a picture: boxes and points in fractions of its sides."""

from __future__ import annotations

from collections.abc import Sequence

from andes_verifiers.places import Rectangle, place_of

THOUSAND = 1000.0


def said_place(text: str) -> Rectangle | None:
    """The first box of an answer, else its first point as a box without area, else None; fractions.

    AndesVL writes thousandths of width and height. Numbers that are all at most 1 are fractions already.
    """
    place = place_of(text)
    if place is None or max(place) <= 1:
        return place
    x1, y1, x2, y2 = (value / THOUSAND for value in place)
    return x1, y1, x2, y2


def hits(truth: Sequence[float], place: Rectangle) -> bool:
    """Whether the centre of a place lies in the true box, edges included; as ScreenSpot."""
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    return truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3]


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0.0 where neither has an area."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - width * height
    return width * height / union if union > 0 else 0.0


def thousandths(box: Sequence[float]) -> str:
    """A box in fractions as AndesVL writes it."""
    x1, y1, x2, y2 = (int(value * THOUSAND) for value in box)
    return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"
