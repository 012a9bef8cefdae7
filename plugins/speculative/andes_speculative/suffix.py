"""Drafter `suffix`: what followed the last words before may follow them again. No training, no model.

Source: SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975). The longest end of the text that occurred before says
what comes next, in the text itself or in a corpus. Here a suffix automaton finds it, and every guess has a chance:
how often guesses after a match of about that length were right lately. It is counted for every token that is read,
whether somebody asked for a guess or not. So proposals follow from the text alone, and a drafter whose guesses do not
pay learns when they do again. Left out: counts of what followed; the newest continuation comes first instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from .acceptance import HitRate
from .automaton import ROOT, SuffixAutomaton
from .drafter import Guess

if TYPE_CHECKING:
    from andes_sdk.types import Rows

UNLIKELY = 0.02
"""Guesses less likely than this are not followed: no pass is so cheap that they pay."""
SHORTER = 3
"""Shorter matches that are asked for further ways on."""
ASSUMED = (0.1, 0.25, 0.4, 0.6, 0.8, 0.9, 0.95)
"""Chance of the first way on, by the bits of the match's length: 0, 1, 2-3, 4-7, 8-15, 16-31, from 32 on."""

Place = tuple[int, int]
"""State and length of a match."""


@define(eq=False)
class Words:
    """One conversation: its text as an automaton, where it stands in the corpus, and how good guesses were."""

    corpus: SuffixAutomaton | None
    text: SuffixAutomaton = field(factory=SuffixAutomaton)
    place: Place = (ROOT, 0)
    rate: HitRate = field(factory=HitRate)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Tokens that were committed."""
        for token in tokens:
            self._learn(self.text.match(), self.place, token)
            self.text.extend(token)
            if self.corpus is not None:
                self.place = self.corpus.step(*self.place, token)

    def fork(self) -> Words:
        """A copy; the corpus is shared."""
        return Words(self.corpus, self.text.fork(), self.place, self.rate.fork())

    def _learn(self, here: Place, there: Place, token: int) -> None:
        """Whether the guesses that one would have made now are right."""
        for rank, (guess, kind, _) in enumerate(self.ways(here, there, 2)):
            self.rate.note(kind, guess == token)
            if guess == token or rank:
                return

    def ways(self, here: Place, there: Place, width: int) -> Iterator[tuple[int, int, float]]:
        """Distinct tokens that may follow, best first: token, kind of guess, and its chance if those before are wrong.

        Args:
            here, there: where the end of the text stands in the text, and in the corpus.
        """
        known: set[int] = set()
        sources = [(self.text, *here)]
        if self.corpus is not None:
            # the longer match is the better witness; the text itself, where they are as long
            sources.insert(0 if there[1] > here[1] else 1, (self.corpus, *there))
        for source, state, length in sources:
            for _ in range(SHORTER + 1):
                if length == 0:
                    break
                tokens = source.after(state)
                for token in tokens:
                    if token in known:
                        continue
                    bits, split = min(length.bit_length(), 6), len(tokens) > 1
                    kind = (bits << 3) | (min(len(known), 1) << 2) | (split << 1) | (source is self.corpus)
                    assumed = ASSUMED[bits] * (0.6 if split else 1.0) * (0.5 if known else 1.0)
                    known.add(token)
                    yield token, kind, self.rate.chance(kind, assumed)
                    if len(known) == width:
                        return
                state = source.links[state]
                length = source.lengths[state] if state > ROOT else 0


@frozen(eq=False)
class SuffixDrafter:
    """Guesses by looking back.

    Attributes:
        width: ways on that are followed at each place. rows: most guesses at once.
        corpus: more text to look into; None for none.
    """

    width: int = 3
    rows: int = 64
    corpus: SuffixAutomaton | None = None
    name: str = "suffix"
    taps: Sequence[int] = ()
    free: bool = True
    stride: int = 1

    def open(self) -> Words:
        """An empty text."""
        return Words(self.corpus)

    def guess(
        self, memories: Sequence[Any], last: Sequence[int], depth: int, least: Sequence[float] = ()
    ) -> list[list[Guess]]:
        """The likeliest guesses of each conversation, likeliest first.

        least: of each, the chance below which its likeliest guess is not worth going on from; without it 0.
        """
        bars = least or [0.0] * len(last)
        each = zip(memories, last, bars, strict=True)
        return [self._guess(memory, token, depth, bar) for memory, token, bar in each]

    def matched(self, words: Words, last: int) -> int:
        """Tokens, the last one among them, that stood in the text or in the corpus before."""
        there = 0 if words.corpus is None else words.corpus.step(*words.place, last)[1]
        return max(there, words.text.step(*words.text.match(), last)[1])

    def _guess(self, words: Words, last: int, depth: int, least: float) -> list[Guess]:
        found: list[Guess] = []
        heap: list[tuple[float, int, int, int, int, Place, Place]] = []
        count = 0

        def follow(token: int, parent: int, chance: float, deep: int, here: Place, there: Place) -> None:
            nonlocal count
            here = words.text.step(*here, token)
            there = (ROOT, 0) if words.corpus is None else words.corpus.step(*there, token)
            left = chance  # that the ways before this one are all wrong
            for way, _, share in words.ways(here, there, self.width):
                likely, left = left * share, left * (1.0 - share)
                if likely >= UNLIKELY:
                    heappush(heap, (-likely, count, way, parent, deep, here, there))
                    count += 1

        follow(last, -1, 1.0, 1, words.text.match(), words.place)
        if heap and -heap[0][0] < least:
            depth = 1
            del heap[1:]
        while heap and len(found) < self.rows:
            negative, _, token, parent, deep, here, there = heappop(heap)
            found.append(Guess(token, parent, -negative))
            if deep < depth:
                follow(token, len(found) - 1, -negative, deep + 1, here, there)
        return found
