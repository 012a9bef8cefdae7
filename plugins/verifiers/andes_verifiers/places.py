"""Rewards for places in a picture: boxes and points, in thousandths of width and height as AndesVL writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from .answers import final_answer, misfit, truth

Rectangle = tuple[float, float, float, float]

_N = r"\s*(-?\d+(?:\.\d+)?)\s*"
_PAIRS = re.compile(rf"[(\[]{_N},{_N}[)\]]\s*,?\s*[(\[]{_N},{_N}[)\]]")
_FOUR = re.compile(rf"[(\[]{_N},{_N},{_N},{_N}[)\]]")
_POINT = re.compile(rf"[(\[]{_N},{_N}[)\]]")


def place_of(text: str) -> Rectangle | None:
    """The first box of a text, else its first point as a box without area, else None.

    Reads `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, with or without its tokens, and `[x1, y1, x2, y2]`.
    """
    found = next((m for p in (_PAIRS, _FOUR) if (m := p.search(text))), None)
    if found:
        x1, y1, x2, y2 = map(float, found.groups())
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if point := _POINT.search(text):
        x, y = map(float, point.groups())
        return x, y, x, y
    return None


def _target(sample: Mapping[str, Any], name: str) -> Rectangle:
    right = sample.get("box") if name not in sample and "box" in sample else truth(sample, name)
    if isinstance(right, Sequence) and not isinstance(right, str) and len(right) == 4:
        right = f"[{', '.join(map(str, right))}]"
    box = place_of(str(right))
    if box is None or box[0] == box[2] or box[1] == box[3]:
        raise misfit(name, right, "a box [x1, y1, x2, y2] with an area")
    return box


@frozen
class Box:
    """1.0 where the centre of the predicted box, or the predicted point, lies inside the true box (ScreenSpot)."""

    name: str = "box"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """The truth is [x1, y1, x2, y2] in the units of the answer; its edges count as inside."""
        x1, y1, x2, y2 = _target(sample, self.name)
        said = place_of(final_answer(answer))
        if said is None:
            return 0.0
        x, y = (said[0] + said[2]) / 2, (said[1] + said[3]) / 2
        return float(x1 <= x <= x2 and y1 <= y <= y2)


@frozen
class Overlap:
    """Intersection over union of the predicted and the true box, from 0.0 to 1.0. The truth is as for `box`."""

    name: str = "iou"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """A point, or no place at all, scores 0.0."""
        right = _target(sample, self.name)
        said = place_of(final_answer(answer))
        if said is None:
            return 0.0
        width = max(0.0, min(right[2], said[2]) - max(right[0], said[0]))
        height = max(0.0, min(right[3], said[3]) - max(right[1], said[1]))
        areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (right, said))
        return width * height / (areas - width * height)
