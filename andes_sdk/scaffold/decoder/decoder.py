"""Prompt lookup (Saxena 2023): what followed these words before may follow them again.

A guess is verified in one pass and each token is picked from the model's own logits, with noise keyed by its position.
So the answer is what plain decoding gives, guess or no guess; only the number of passes changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen
from torch import Tensor

from andes_sdk.types import Sampler, Session


@frozen
class Lookup:
    """Guesses up to `depth` tokens after the last `match` ones; `limit` is the model's number of positions."""

    depth: int
    match: int
    limit: int
    name = "example"

    def decode(self, session: Session, logits: Tensor, sampler: Sampler, history: list[int]) -> Iterator[list[int]]:
        """Yield tokens for ever; those of one list were read in one pass."""
        token = sampler.pick(logits, session.length, history)
        history.append(token)
        yield [token]
        while True:
            start = session.length
            guess = self.guess(history)[: max(0, self.limit - start - 1)]
            scores, _ = session.extend([token, *guess])
            accepted: list[int] = []
            for row in range(len(guess) + 1):
                token = sampler.pick(scores[row], start + 1 + row, history)
                history.append(token)
                accepted.append(token)
                if row == len(guess) or token != guess[row]:
                    break
            # the last token accepted is not in the session yet: it is the first row of the next pass
            session.commit(list(range(len(accepted))))
            yield accepted

    def guess(self, history: Sequence[int]) -> list[int]:
        """What followed the latest earlier occurrence of the last `match` tokens; empty if there is none."""
        last = list(history[-self.match :])
        for end in range(len(history) - 1, self.match - 1, -1):
            if list(history[end - self.match : end]) == last:
                return list(history[end : end + self.depth])
        return []
