"""Texts to fit a learned scorer on: prose, code, and procedural facts, none of them of the form that `kv.py` asks for.

    python benchmarks/kv_data.py kv_train.jsonl --texts 40
    andes okv fit MODEL --data kv_train.jsonl --out scorer.safetensors

A third is documentation of this repository and of Python's own modules. The rest is made: records, tables, settings,
dialogues and notes with random names and numbers, between sentences of a small grammar that repeat themselves, as texts
of tests do. Half of all stands in a conversation. `kv.py` has other sentences, other words and other seeds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("argparse", "asyncio", "decimal", "doctest", "email", "fractions", "heapq", "logging", "pickle", "random",
           "shlex", "statistics", "string", "textwrap", "turtle", "typing", "unittest", "zipfile")  # fmt: skip
SOUNDS = ("ba", "bel", "cor", "da", "den", "fi", "gar", "hol", "ka", "lin", "mar", "ne", "os", "pel", "ra", "rin", "sa",
          "tal", "to", "ul", "ven", "vi", "wen", "ya", "zor")  # fmt: skip
NOUNS = ("engineer", "nurse", "pilot", "teacher", "sailor", "student", "painter", "clerk", "hotel", "museum", "harbour",
         "factory", "valley", "island", "forest", "theatre", "library", "hospital", "office", "village")  # fmt: skip
VERBS = ("visits", "repairs", "describes", "forgets", "opens", "watches", "sells", "builds", "reaches", "leaves")
TAILS = ("in the afternoon", "without a word", "for the second time", "as usual", "before the holidays", "at low tide",
         "with great care", "after a long journey", "because of the storm", "on the way home")  # fmt: skip
ADJECTIVES = ("quiet", "famous", "narrow", "modern", "old", "empty", "friendly", "distant", "careful", "tired")
ASKED = ("Read this and wait for my questions.", "Here are my notes.", "Keep the following in mind.", "Summarise this.")


def name(rng: random.Random) -> str:
    """A made-up word."""
    return "".join(rng.sample(SOUNDS, rng.randint(2, 3))).capitalize()


def number(rng: random.Random) -> str:
    """Digits of some length."""
    return str(rng.randrange(10 ** rng.randint(1, 6)))


def sentence(rng: random.Random) -> str:
    """Of the grammar."""
    a, b = rng.sample(NOUNS, 2)
    return f"The {rng.choice(ADJECTIVES)} {a} {rng.choice(VERBS)} the {b} {rng.choice(TAILS)}."


def fact(rng: random.Random) -> str:
    """Something that only its own text can tell, in one of many forms."""
    one, two, n, m = name(rng), name(rng), number(rng), number(rng)
    return rng.choice((
        f"{one} lives in {two}, in house number {n}.", f"Ticket {n} belongs to {one} {two}.",
        f"{one}: {n}; {two}: {m}.", f"Flight {one[:2].upper()}{n} to {two} leaves from gate {rng.randrange(90)}.",
        f"{one.lower()}_{two.lower()} = {n}", f'{{"id": {n}, "owner": "{one}", "city": "{two}"}}',
        f"{one} asked {two} for {n} coins and got {m}.", f"The phone number of {one} {two} is {n} {m}.",
        f"{one} | {two} | {n} | {m}", f"In {n} a painter called {one} moved to {two}.",
        f"My {rng.choice(NOUNS)}'s name is {one}.", f"set {one.upper()}={two.lower()}{n}",
        f"The password for {one} was changed to {two.lower()}-{n}.", f"{one} weighs {n} kg, {two} only {m} kg.",
    ))  # fmt: skip


def hidden(rng: random.Random) -> str:
    """Few facts in sentences of which some come again and again."""
    few = [sentence(rng) for _ in range(rng.randint(6, 60))]
    return " ".join(fact(rng) if rng.random() < 0.12 else rng.choice(few) for _ in range(90))


def records(rng: random.Random) -> str:
    """Nothing but facts, line by line."""
    return "\n".join(fact(rng) for _ in range(60))


def changing(rng: random.Random) -> str:
    """Variables that are set from one another."""
    names, lines = [name(rng).lower() for _ in range(8)], []
    for _ in range(90):
        to, source = rng.sample(names, 2)
        lines.append(f"{to} = {rng.choice((source, number(rng)))}")
    return "\n".join(lines)


def prose(rng: random.Random) -> str:
    """A part of a page of documentation or of a module's docstrings."""
    if rng.random() < 0.5:
        text = rng.choice(sorted(ROOT.glob("docs/*.md"))).read_text()
    else:
        module = importlib.import_module(rng.choice(MODULES))
        text = "\n\n".join(str(getattr(module, n).__doc__) for n in sorted(vars(module)) if n[0] != "_")
    start = rng.randrange(max(1, len(text) - 3500))
    return text[start : start + 3500]


KINDS: tuple[Callable[[random.Random], str], ...] = (prose, hidden, records, prose, hidden, changing)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=77)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with given.out.open("w") as file:
        for n in range(given.texts):
            text = KINDS[n % len(KINDS)](rng)
            talk = [{"role": "user", "content": f"{rng.choice(ASKED)}\n{text}"}]
            file.write(json.dumps({"messages": talk} if rng.random() < 0.5 else {"text": text}) + "\n")


if __name__ == "__main__":
    main()
