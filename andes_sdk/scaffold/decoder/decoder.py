"""Prompt lookup (Saxena 2023): what followed these words before may follow them again.

A decoder only proposes. The engine samples each token from the model's own logits and keeps the guesses that agree, so
the answer is what plain decoding gives; only the number of passes changes.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field, frozen

from andes_sdk.types import Draft, Proposal, Rows


@define(eq=False)
class Words:
    """What one conversation has said so far: its prompt, then its answer."""

    tokens: list[int] = field(factory=list)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed; this decoder needs their tokens alone."""
        self.tokens += tokens

    def fork(self) -> Words:
        """A copy."""
        return Words(list(self.tokens))


@frozen
class Lookup:
    """Guesses up to `depth` tokens after the last `match` ones."""

    depth: int
    match: int
    name = "example"
    taps = ()

    def open(self) -> Words:
        """A memory for a new conversation."""
        return Words()

    def propose(self, drafts: Sequence[Draft], last: Sequence[int]) -> list[Proposal]:
        """What followed the latest earlier occurrence of the last tokens, for each conversation."""
        return [
            Proposal(tuple(self.guess([*draft.tokens, token])))
            for draft, token in zip(drafts, last, strict=True)
            if isinstance(draft, Words)
        ]

    def guess(self, history: Sequence[int]) -> list[int]:
        """What followed the latest earlier occurrence of the last `match` tokens; empty if there is none."""
        last = list(history[-self.match :])
        for end in range(len(history) - 1, self.match - 1, -1):
            if list(history[end - self.match : end]) == last:
                return list(history[end : end + self.depth])
        return []
