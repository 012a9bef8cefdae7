"""Exact match of the final answer. Needs no model and no torch: a reward is a function of a sample and a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from andes_sdk.errors import InputError


@frozen
class ExactMatch:
    """1.0 where the answer is the sample's `answer`, else 0.0."""

    ignore_case: bool
    name = "example"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """Compares what follows `</think>`, without space and full stops around it.

        Raises:
            InputError: the sample has no `answer`.
        """
        if "answer" not in sample:
            raise InputError("the sample has no 'answer'", who=self.name, fix='add "answer": "…" to each sample')
        return float(self._plain(answer.rpartition("</think>")[2]) == self._plain(str(sample["answer"])))

    def _plain(self, text: str) -> str:
        text = " ".join(text.split()).rstrip(".。")
        return text.casefold() if self.ignore_case else text
