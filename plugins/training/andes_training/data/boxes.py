"""Boxes in text as AndesVL writes them: `<|box_start|>(x1,y1),(x2,y2)<|box_end|>`, thousandths of width and height."""

from __future__ import annotations

import re

from andes_training.data.bad import BadSample

START, END = "<|box_start|>", "<|box_end|>"
SCALE = 1000
_SPAN = re.compile(re.escape(START) + "(.*?)" + re.escape(END), re.DOTALL)
_NUMBER = r"\s*(-?\d{1,9})\s*"
_BODY = re.compile(rf"\s*\({_NUMBER},{_NUMBER}\)\s*(?:,\s*\({_NUMBER},{_NUMBER}\)\s*)?")

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in thousandths; a point has right = left and bottom = top."""


def find_boxes(text: str) -> list[Box]:
    """Every box and point of a text.

    Raises:
        BadSample: one is not closed, is no pair of integer points, lies outside 0..1000, or has its corners swapped.
    """
    found = []
    if text.count(START) != text.count(END):
        raise _bad("a box is not closed", f"{text.count(START)} of {START}, {text.count(END)} of {END}")
    for span in _SPAN.findall(text):
        match = _BODY.fullmatch(span)
        if match is None:
            raise _bad("a box is not written as one", repr(span[:80]))
        x1, y1, *rest = (int(n) for n in match.groups() if n is not None)
        x2, y2 = rest or (x1, y1)
        if not all(0 <= n <= SCALE for n in (x1, y1, x2, y2)):
            raise _bad("a box lies outside its picture", f"({x1},{y1}),({x2},{y2}) in thousandths")
        if x2 < x1 or y2 < y1:
            raise _bad("a box has its corners swapped", f"({x1},{y1}),({x2},{y2})")
        found.append((x1, y1, x2, y2))
    return found


def _bad(what: str, why: str) -> BadSample:
    return BadSample(what, reason="box", why=why, fix=f"write {START}(x1,y1),(x2,y2){END}, integers from 0 to {SCALE}")
