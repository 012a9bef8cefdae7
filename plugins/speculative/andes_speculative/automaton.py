"""A suffix automaton over token ids, built one token at a time: where the end of a text occurred before.

Source: Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; built as in Crochemore and
Hancart 1997, section 5. A state stands for the substrings that end at the same places; `link` leads to its longest
suffix that also ends elsewhere. Adding a token costs O(1) amortised, and there are at most two states a token.

Beside it a state knows which token followed it last, as far as that costs nothing: `REFRESHED` links above the states
that a token changes anyway. Left out: how often tokens followed, which would cost the length of a repetition each time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from attrs import define, field

ROOT = 0
NONE = -1
REFRESHED = 4
"""Shorter contexts that are told which token came last, beyond those that had not seen it."""


def _numbers(*first: int) -> array[int]:
    return array("q", first)


@define(eq=False)
class SuffixAutomaton:
    """All substrings of a text of token ids.

    Attributes:
        links, lengths: per state its longest suffix that ends elsewhere too, and the length of its longest string.
        recent: per state the token that followed it last, -1 before any did.
        last: the state of the whole text.
    """

    links: array[int] = field(factory=lambda: _numbers(NONE))
    lengths: array[int] = field(factory=lambda: _numbers(0))
    recent: array[int] = field(factory=lambda: _numbers(NONE))
    last: int = ROOT
    _tokens: array[int] = field(factory=lambda: _numbers(NONE))  # most states have one way on: it needs no dict
    _targets: array[int] = field(factory=lambda: _numbers(NONE))
    _more: dict[int, dict[int, int]] = field(factory=dict)

    @classmethod
    def of(cls, tokens: Iterable[int]) -> SuffixAutomaton:
        """Of a whole text."""
        made = cls()
        for token in tokens:
            made.extend(token)
        return made

    def target(self, state: int, token: int) -> int:
        """Where a token leads, or -1."""
        if self._tokens[state] == token:
            return self._targets[state]
        more = self._more.get(state)
        return NONE if more is None else more.get(token, NONE)

    def _lead(self, state: int, token: int, target: int) -> None:
        if self._tokens[state] in (NONE, token):
            self._tokens[state], self._targets[state] = token, target
        else:
            self._more.setdefault(state, {})[token] = target

    def _state(self, length: int, link: int = NONE) -> int:
        for values, value in ((self.links, link), (self.lengths, length), (self.recent, NONE)):
            values.append(value)
        self._tokens.append(NONE)
        self._targets.append(NONE)
        return len(self.links) - 1

    def extend(self, token: int) -> None:
        """One more token at the end."""
        links, lengths, recent = self.links, self.lengths, self.recent
        state = self._state(lengths[self.last] + 1)
        above = self.last
        while above != NONE and (target := self.target(above, token)) == NONE:
            self._lead(above, token, state)
            recent[above] = token
            above = links[above]
        if above == NONE:
            links[state] = ROOT
        elif lengths[above] + 1 == lengths[target]:
            links[state] = target
        else:
            links[state] = links[target] = self._cloned(above, token, target)
        self.last = state
        for _ in range(REFRESHED):
            if above in (NONE, ROOT):
                break
            recent[above] = token
            above = links[above]

    def _cloned(self, above: int, token: int, target: int) -> int:
        """The shorter strings of `target`, which from now on end in more places than its longer ones."""
        clone = self._state(self.lengths[above] + 1, self.links[target])
        self.recent[clone] = self.recent[target]
        self._tokens[clone], self._targets[clone] = self._tokens[target], self._targets[target]
        if target in self._more:
            self._more[clone] = dict(self._more[target])
        while above != NONE and self.target(above, token) == target:
            self._lead(above, token, clone)
            above = self.links[above]
        return clone

    # ------------------------------------------------------------ looking back

    def match(self) -> tuple[int, int]:
        """State and length of the longest end of the text that occurred before; (0, 0): none did."""
        state = self.links[self.last]
        return (ROOT, 0) if state == NONE else (state, self.lengths[state])

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest end of (that string and a token) which is a substring of the text: its state and length."""
        while (target := self.target(state, token)) == NONE:
            state = self.links[state]
            if state == NONE:
                return ROOT, 0
            length = self.lengths[state]
        return target, length + 1

    def after(self, state: int) -> list[int]:
        """The distinct tokens that followed a state's strings: the last one first, then the newer before the older."""
        first = self._tokens[state]
        if first == NONE:
            return []
        tokens = [first, *self._more.get(state, ())][::-1]
        if len(tokens) > 1:
            tokens.remove(self.recent[state])
            tokens.insert(0, self.recent[state])
        return tokens

    def __len__(self) -> int:
        return self.lengths[self.last]

    def fork(self) -> SuffixAutomaton:
        """A copy."""
        return SuffixAutomaton(
            links=self.links[:], lengths=self.lengths[:], recent=self.recent[:], last=self.last,
            tokens=self._tokens[:], targets=self._targets[:], more={s: dict(ways) for s, ways in self._more.items()},
        )  # fmt: skip
