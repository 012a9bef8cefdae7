"""Texts of facts among sentences of other words, and what can be asked of them.

| task | a fact | what is asked | the answer |
|---|---|---|---|
| `keys` | a key and its value | a key | its value |
| `values` | the same, some keys twice | a key | its values in the order of the text |
| `tracking` | a variable and a value, or an earlier variable that has one | a variable | the value behind it |
| `common` | a word | `most` | the word that stands there most often |
"""

from __future__ import annotations

import random
from collections import Counter

TASKS = ("keys", "values", "tracking", "common")


def words(first: str, second: str) -> tuple[str, ...]:
    """Each syllable of one list before each of the other."""
    return tuple(a + b for a in first.split() for b in second.split())


KEYS = words("ba co de fi gu ha jo ki", "lan mer nos pit rud sek")
VALUES = words("by cu dy fo ge hy ja ke", "dim fen gor hap jil kut")
OTHERS = words("mo ne pu ri", "sha tol vek zun")
"""Of the sentences between facts."""
SENTENCES = tuple(
    " ".join(rng.choice(OTHERS) for _ in range(rng.randint(5, 9))) + "." for rng in map(random.Random, range(24))
)


def sample(rng: random.Random, task: str, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """So many facts, at most 48, and what can be asked: (what stands before the answer, the answer)."""
    if task == "common":
        few = rng.sample(VALUES, 6)
        often = few[0]
        said = [often] * -(-count // 3) + [rng.choice(few[1:]) for _ in range(count - -(-count // 3))]
        rng.shuffle(said)
        if Counter(said).most_common(1)[0][0] != often:
            return sample(rng, task, count)
        return said, [("most", often)]
    if task == "tracking":
        told: list[tuple[str, str]] = []
        said, direct = [], []
        for name in rng.sample(KEYS, count):
            if direct and rng.random() < 0.4:
                other, value = rng.choice(direct)
                said.append(f"{name} {other}")
            else:
                value = rng.choice(VALUES)
                direct.append((name, value))
                said.append(f"{name} {value}")
            told.append((name, value))
        return said, told
    names = rng.sample(KEYS, count if task == "keys" else count - count // 3)
    pairs = [(name, rng.choice(VALUES)) for name in names]
    if task == "values":
        pairs += [(name, rng.choice(VALUES)) for name in rng.sample(names, count // 3)]
        rng.shuffle(pairs)
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return list(map(" ".join, pairs)), [(name, " ".join(values)) for name, values in found.items()]


def text_of(rng: random.Random, task: str, facts: list[str], sentences: int) -> str:
    """A user's turn: facts in their order, each at a random place among so many sentences."""
    parts = [rng.choice(SENTENCES) for _ in range(sentences)]
    places = sorted((rng.randint(0, sentences) for _ in facts), reverse=True)
    for place, fact in zip(places, reversed(facts), strict=True):
        parts.insert(place, f"{fact}.")
    return f"{task}: " + " ".join(parts)
