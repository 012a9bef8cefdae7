"""Open questions of MMMU: whether the truth stands in what an answer concludes (Yue et al., arXiv 2311.16502)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LEADS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MARKS = frozenset(":,.!?;'")
_THOUSANDS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def open_match(answer: str, truths: Sequence[str]) -> bool:
    """Whether one of the truths is a number of the conclusions, or stands in their text."""
    right = [value for truth in truths for value in values(truth)]
    said = {value for text in _conclusions(answer) for value in values(text)}
    return any(
        any(isinstance(one, str) and one in value for one in right) if isinstance(value, str) else value in right
        for value in said
    )


def values(text: str) -> list[float | str]:
    """A number, rounded to two places; else the text in lower case, one character with a space on either side."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def _conclusions(answer: str) -> list[str]:
    """The shortest end of each line that follows a word such as "therefore", or the answer; and the numbers in them."""
    answer = answer.strip().strip(".").lower()
    lines = re.split(r"\.\s(?=[A-Z])|\n", answer)
    found = []
    for number, line in enumerate(lines):
        leads = (*_LEADS, "=") if number == len(lines) - 1 else _LEADS
        ends = [line.split(lead)[-1].strip() for lead in leads if lead in line]
        shortest = _shortest(ends)
        if shortest and shortest not in _MARKS:
            found.append(shortest)
    found = found or [answer]
    numbers = [number for text in found for p in (_THOUSANDS, _SCIENTIFIC, _PLAIN) for number in p.findall(text)]
    return [*found, *numbers]


def _shortest(ends: Sequence[str]) -> str:
    """The first of the shortest; one that is empty gives way to the next."""
    best = ""
    for end in ends:
        if not best or len(end) < len(best):
            best = end
    return best
