"""Which guesses are worth a row: those for which the expected tokens a second are most.

A pass with n rows more costs c(B + n) for B conversations, and gives B tokens and the sum of the chances of the n
guesses. Chances only fall along a path, so the likeliest n are always trees. The best n is found by trying all.

Chances are estimates, and the highest of many estimates is too high. So guesses have to promise `MARGIN` more than
none, and a conversation whose guesses did not pay lately is believed less.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from andes_sdk.types import Proposal

from .cost import Cost
from .drafter import Guess

NOTHING = Proposal()
MARGIN = 1.05
"""How much faster a pass with guesses must promise to be."""
UNLIKELY = 0.02
"""Paths less likely are too deep."""
MOST_ROWS = 256
"""Guesses in a pass, as the option `rows` allows."""


def choose(
    guesses: Sequence[Sequence[Guess]], cost: Cost, trust: Sequence[float] = (), most: float = inf
) -> list[Proposal]:
    """Of each conversation the guesses that pay, all conversations weighed together.

    Args:
        trust: of each conversation, what its chances count for, from 0 to 1; without it 1.
        most: tokens of plain passes that all of them may lose if no guess is right.
    """
    believed = trust or [1.0] * len(guesses)
    ranked = sorted(
        (-guess.chance * believed[who], index, who)
        for who, some in enumerate(guesses)
        for index, guess in enumerate(some)
    )
    base = len(guesses)
    gain, best, count = float(base), MARGIN * base / cost.of(base), 0
    for n, (negative, _, _) in enumerate(ranked, 1):
        gain -= negative
        if price(cost, base, n) > most:
            break
        if gain / cost.of(base + n) > best:
            best, count = gain / cost.of(base + n), n
    kept: list[list[int]] = [[] for _ in guesses]
    for _, index, who in ranked[:count]:
        kept[who].append(index)
    return [proposal(some, sorted(chosen)) for some, chosen in zip(guesses, kept, strict=True)]


def price(cost: Cost, base: int, rows: int) -> float:
    """Tokens that passes of `base` conversations would make in the time that so many more rows take."""
    return base * (cost.of(base + rows) / cost.of(base) - 1.0)


def least(cost: Cost, base: int) -> float:
    """The chance that the likeliest guess must have, so that any guesses of `base` conversations pay.

    None behind it is likelier, and c(k) is made of straight lines, so looking at their ends is enough.
    """
    beyond = [1, *(rows - base for rows in cost.rows if rows > base + 1), MOST_ROWS]
    return min((MARGIN * (base + price(cost, base, n)) - base) / n for n in beyond)


def proposal(guesses: Sequence[Guess], chosen: Sequence[int]) -> Proposal:
    """Some guesses as a proposal; a parent is chosen with its child. Chains come without parents."""
    if not chosen:
        return NOTHING
    place = {index: n for n, index in enumerate(chosen)} | {-1: -1}
    parents = tuple(place[guesses[index].parent] for index in chosen)
    tokens = tuple(guesses[index].token for index in chosen)
    chain = parents == tuple(range(-1, len(chosen) - 1))
    return Proposal(tokens, () if chain else parents)


def deepest(rate: float, cost: Cost, step: float, depth: int, beside: int = 1, stride: int = 1) -> int:
    """How many tokens a drafter that computes should guess; 0: it does not pay.

    Args:
        rate: chance that a guess is right if those before are. step: time of one of its passes, a pass of the model
        with one row being 1. beside: conversations that share the pass. stride: tokens that one of its passes guesses.
    """
    best, found, gain, chance = MARGIN * beside / cost.of(beside), 0, float(beside), 1.0
    for n in range(1, depth + 1):
        chance *= rate
        gain += beside * chance
        speed = gain / (cost.of(beside * (n + 1)) + -(-n // stride) * step)
        if speed > best:
            best, found = speed, n
        if chance < UNLIKELY:
            break
    return found
