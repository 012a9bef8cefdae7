"""Mathematical equality, by math-verify."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

from .answers import after_thinking, boxed, misfit, truth


@frozen
class Math:
    """1.0 where the answer's expression equals the truth as mathematics: LaTeX, fractions, sets, intervals …"""

    name: str = "math"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        r"""The truth is LaTeX or a plain expression; the answer's last `\boxed{}` goes before its other expressions.

        Raises:
            InputError: a truth without mathematics, or a call outside the main thread (the time limit is a signal).
        """
        from math_verify import parse, verify

        if threading.current_thread() is not threading.main_thread():
            why = "math-verify limits its time by a signal, which only the main thread gets"
            raise InputError("mathematics is judged in the main thread only", who=self.name, why=why, fix="score there")
        right = _truth(str(truth(sample, self.name)))
        text = after_thinking(answer)
        return float(verify(list(right), parse(f"$\\boxed{{{inner}}}$" if (inner := boxed(text)) else text)))


@functools.lru_cache(maxsize=1024)
def _truth(text: str) -> tuple[Any, ...]:
    from math_verify import parse

    parsed = parse(text if "$" in text else f"${text}$") or parse(text)
    if not parsed:
        raise misfit("math", text, "a mathematical expression")
    return tuple(parsed)
