"""Rewards for the form of an answer: thinking where it is asked for, and length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


@frozen
class Format:
    """1.0 for `<think>…</think>` and then an answer, both with text, each tag once.

    A sample with `"think": false` wants an answer without thinking: 1.0 where there is text and neither tag. Without
    `think`, or where it is null, thinking is wanted.
    """

    name: str = "format"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """Looks at the answer only, and at the sample's `think`.

        Raises:
            InputError: `think` is no truth value.
        """
        tags = answer.count("<think>"), answer.count("</think>")
        if not self._wanted(sample):
            return float(tags == (0, 0) and bool(answer.strip()))
        match = _THOUGHT.fullmatch(answer)
        return float(tags == (1, 1) and match is not None and all(part.strip() for part in match.groups()))

    def _wanted(self, sample: Mapping[str, Any]) -> bool:
        think = sample.get("think")
        if think is not None and not isinstance(think, bool):
            what = f"the sample's `think` is {repr(think)[:80]}"
            raise InputError(what, who=self.name, fix="write true or false, or leave it out")
        return think is not False


@frozen
class Length:
    """0.0 for an answer that is short enough, falling in a straight line to -1.0 at `limit` characters.

    Soft overlong punishment (DAPO, arXiv 2503.14476, eq. 13), in characters rather than tokens.
    """

    limit: int = 8192
    grace: float = 0.2
    name: str = "length"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """Needs no truth."""
        if len(answer) >= self.limit:
            return -1.0
        start = self.limit * (1 - self.grace)
        return min(0.0, (start - len(answer)) / (self.limit - start)) if self.grace else 0.0
