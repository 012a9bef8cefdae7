"""Answers of mathematics: a number, an option, an expression."""

from __future__ import annotations

import re
from collections.abc import Sequence

from andes_verifiers.mathematics import Math
from andes_verifiers.numerals import values_of
from andes_verifiers.text import Exact

from andes_sdk.errors import InputError

from .text import edit_distance


def same_mathematics(answer: str, truth: str) -> float:
    """1.0 where an answer equals the truth as text, as a number or as an expression (math-verify)."""
    if Exact().score({"exact": truth}, answer):
        return 1.0
    try:
        return Math().score({"math": truth}, answer)
    except InputError:  # the truth is no mathematics, so it is text and differs
        return 0.0


def close_number(answer: str, truth: float, tolerance: float) -> float:
    """1.0 where the last number of an answer is within an absolute tolerance; as DynaMath.

    What is no single number, such as `3-4`, is as near as nothing.
    """
    said = list(values_of(answer))
    return float(bool(said) and abs(said[-1] - truth) <= tolerance)


def as_mathvista(answer: str, choices: Sequence[str], answer_type: str, precision: int) -> str | None:
    """An answer in the form in which MathVista's truths are written; None if it has none.

    A choice becomes the text of the option: by `(B)` or `B`, else the option whose text differs least.
    """
    if choices:
        said = answer.strip()
        if bracketed := re.findall(r"\(([a-zA-Z])\)", said):
            said = bracketed[0].upper()
        place = ord(said) - ord("A") if len(said) == 1 else -1
        if 0 <= place < len(choices):
            return choices[place]
        return min(choices, key=lambda choice: edit_distance(said, choice))
    try:
        if answer_type == "integer":
            return str(int(float(answer)))
        return str(round(float(answer), precision)) if answer_type == "float" else answer
    except (ValueError, OverflowError):
        return None
