"""How often guesses of a kind were right, lately."""

from __future__ import annotations

from attrs import define, field

STRENGTH = 3.0
"""Observations that a first assumption weighs as much as."""
KEPT = 0.97
"""What an observation weighs after one more of its kind: about the last 33 count."""


@define
class HitRate:
    """Shares of right guesses by kind: a mean that forgets, drawn towards an assumption while little was seen."""

    _right: dict[int, float] = field(factory=dict)
    _seen: dict[int, float] = field(factory=dict)

    def note(self, kind: int, right: bool) -> None:
        """One more guess of a kind turned out."""
        self._right[kind] = self._right.get(kind, 0.0) * KEPT + right
        self._seen[kind] = self._seen.get(kind, 0.0) * KEPT + 1.0

    def chance(self, kind: int, assumed: float) -> float:
        """How likely a guess of the kind is right."""
        return (self._right.get(kind, 0.0) + STRENGTH * assumed) / (self._seen.get(kind, 0.0) + STRENGTH)

    def fork(self) -> HitRate:
        """A copy."""
        return HitRate(dict(self._right), dict(self._seen))
