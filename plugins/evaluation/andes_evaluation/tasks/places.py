"""Places on a screen: ScreenSpot, ScreenSpot-v2, ScreenSpot-Pro, AndesUI."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from andes_verifiers.text import Exact
from attrs import field, frozen

from andes_evaluation.fields import Reader, plain_list
from andes_evaluation.items import Answered, Item, Rated
from andes_evaluation.rules import places as rules

from .base import Sums, Task, ratio

START = "<|box_start|>("
"""How a reply is made to begin, so that it is a box (AndesVL's evaluation)."""


@frozen(kw_only=True)
class Grounding(Task):
    """Where something is: right if the centre of the box that is said lies in the true one.

    Attributes:
        instruction: the prompt; `{instruction}` is the row's. corners: whether the truth is written as corners rather
            than as a corner and sizes, where its numbers are pixels.
    """

    instruction: str = "{instruction}"
    corners: bool = True
    max_tokens: int = 64
    groups: tuple[str, ...] = field(default=("data_type", "ui_type", "platform", "kind", "size", "group"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One place a row."""
        asked = reader.text("instruction", "question", "description", "text")
        truth = true_box(reader, corners=self.corners)
        prompt = self.instruction.format(instruction=asked)
        # a Thinking model thinks first, so its reply cannot be made to begin with the box
        yield self.made(reader, number, prompt, truth, question=asked, start="" if think else START)

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 for a hit; the overlap beside it."""
        place = rules.said_place(answer)
        if place is None:
            return Rated(0.0, None, {"iou": 0.0})
        return Rated(float(rules.hits(truth, place)), list(place), {"iou": rules.overlap(truth, place)})

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """Hits, overlaps, and answers without a place."""
        iou = sum(one["marks"]["iou"] for one in cluster)
        half = sum(float(one["marks"]["iou"] >= 0.5) for one in cluster)
        none = sum(float(one["read"] is None) for one in cluster)
        return {**super().tally(cluster), "iou": iou, "half": half, "none": none}

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """Hits, mean overlap, share of overlaps from one half, share without a place, hits by kind."""
        found = super().figures(sums)
        first = {self.measure: found.pop(self.measure)}
        for name, key in (("iou", "iou"), ("iou >= 0.5", "half"), ("format errors", "none")):
            first[name] = ratio(sums[key], sums["n"])
        return {**first, **found}


@frozen(kw_only=True)
class Referring(Task):
    """What stands in a box: right if one of the names holds the other. An empty answer is wrong."""

    instruction: str = "请给出坐标为{box}的控件名称。"
    groups: tuple[str, ...] = field(default=("platform", "kind", "size", "group"))

    def items(self, reader: Reader, number: int, *, think: bool = False) -> Iterator[Item]:
        """One element a row. A row's own instruction is taken; `{box}` in it, or its end, is the box."""
        box = true_box(reader, corners=True)
        asked = str(reader.get("instruction", "question") or self.instruction)
        if "{box}" in asked:
            asked = asked.replace("{box}", rules.thousandths(box))
        elif rules.said_place(asked) is None:
            asked = f"{asked} {rules.thousandths(box)}"
        truth = reader.text("text", "description", "name", "answer")
        yield self.made(reader, number, asked, truth, facts={"box": box})

    def rate(self, answer: str, truth: Any, facts: Mapping[str, Any]) -> Rated:
        """1.0 where one name holds the other; beside it whether they are equal but for case, width and surroundings."""
        said, right = " ".join(answer.split()), " ".join(truth.split())
        exact = Exact().score({"exact": right}, said)
        return Rated(float(bool(said) and bool(right) and (said in right or right in said)), said, {"exact": exact})

    def tally(self, cluster: Sequence[Answered]) -> dict[str, float]:
        """Also equal names."""
        return {**super().tally(cluster), "exact": sum(one["marks"]["exact"] for one in cluster)}

    def figures(self, sums: Sums) -> dict[str, np.ndarray]:
        """One name in the other, then equal names, then by kind."""
        found = super().figures(sums)
        first = {self.measure: found.pop(self.measure), "exact": ratio(sums["exact"], sums["n"])}
        return {**first, **found}


def true_box(reader: Reader, *, corners: bool) -> list[float]:
    """The row's box in fractions of the picture's sides.

    Numbers that are all at most 1 are fractions already. Others are pixels, of a picture whose size the row tells, or
    the picture itself.

    Raises:
        InputError: four numbers are not there, or make no box.
    """
    given = plain_list(reader.need("box", "bbox"))
    try:
        a, b, c, d = (float(value) for value in given)
    except (TypeError, ValueError):
        raise reader.wrong("has no box of four numbers", f"got {given!r:.80}") from None
    if not corners and max(a, b, c, d) > 1:
        c, d = a + c, b + d
    if max(a, b, c, d) > 1:
        width, height = _size(reader)
        a, b, c, d = a / width, b / height, c / width, d / height
    if not (a < c and b < d):
        raise reader.wrong("has a box without an area", f"got {given!r:.80}")
    return [a, b, c, d]


def _size(reader: Reader) -> tuple[float, float]:
    if reader.has("img_size"):
        width, height = plain_list(reader.row["img_size"])
        return float(width), float(height)
    for names in (("width", "height"), ("image_width", "image_height"), ("img_width", "img_height")):
        if all(reader.has(name) for name in names):
            return float(reader.row[names[0]]), float(reader.row[names[1]])
    from PIL import Image

    pictures = reader.pictures()
    if not pictures:
        raise reader.wrong("has a box in pixels, and no picture", "so its size is not known")
    with Image.open(io.BytesIO(pictures[0])) as image:  # the head of the file alone is read
        return float(image.width), float(image.height)
