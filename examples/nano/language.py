"""Tasks without pictures: sums and puzzles that are reasoned through, and calls of a phone assistant's functions."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from words import word

SUMS = ("Calculate {}.", "What is {}?", "State the final answer to {} =")
QUESTIONS = (
    *SUMS, "Which is the largest of 1, 2? Which is the smallest of", "1 or 2: 3; 4 + 5 = 6; 7 - 8 = 9",
    'How many times does "x" stand in "x"?', 'Spell "x" backwards.',
)  # fmt: skip
"""What the tokenizer knows as words."""

LINES = {"sums": 6_000, "thought": 60_000}
"""Lines of training data of each part, which `prepare.py` writes."""


def chain_sum(rng: random.Random, terms: int, digits: int) -> tuple[str, str, str]:
    """A sum -> (question, reasoning, answer): each step adds one term."""
    numbers = [rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits) for _ in range(terms)]
    signs = [1, *(rng.choice((1, 1, -1)) for _ in numbers[1:])]
    text = str(numbers[0]) + "".join(
        f" {'+' if s > 0 else '-'} {n}" for s, n in zip(signs[1:], numbers[1:], strict=True)
    )
    total, steps = numbers[0], []
    for sign, n in zip(signs[1:], numbers[1:], strict=True):
        steps.append(f"{total} {'+' if sign > 0 else '-'} {n} = {total + sign * n}")
        total += sign * n
    question = rng.choice(SUMS).format(text)
    return question, "; ".join(steps), str(total)


def largest(rng: random.Random) -> tuple[str, str, str]:
    """The largest or smallest of some numbers."""
    numbers = rng.sample(range(1000), rng.randint(3, 5))
    most = rng.random() < 0.5
    pick, name = (max, "largest") if most else (min, "smallest")
    best, steps = numbers[0], []
    for n in numbers[1:]:
        new = pick(best, n)
        steps.append(f"{best} or {n}: {new}")
        best = new
    return f"Which is the {name} of {', '.join(map(str, numbers))}?", "; ".join(steps), str(best)


def letters(rng: random.Random, split: str) -> tuple[str, str, str]:
    """How often a letter stands in a word, or the word spelt backwards."""
    text = word(rng, split).lower()
    if rng.random() < 0.5:
        letter = rng.choice(text)
        steps = ", ".join(f"{c} {text[: n + 1].count(letter)}" if c == letter else c for n, c in enumerate(text))
        return f'How many times does "{letter}" stand in "{text}"?', steps, str(text.count(letter))
    return f'Spell "{text}" backwards.', " ".join(text) + "; " + " ".join(reversed(text)), text[::-1]


def reasoning(rng: random.Random, split: str, think: bool) -> dict[str, Any]:
    """A data line: a question, and an answer with or without what leads to it."""
    kind = rng.random()
    if kind < 0.6:
        question, steps, answer = chain_sum(rng, rng.randint(2, 4), rng.randint(1, 2))
    elif kind < 0.8:
        question, steps, answer = largest(rng)
    else:
        question, steps, answer = letters(rng, split)
    text = f"<think>{steps}</think>{answer}" if think else answer
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
    return {"messages": messages, "think": think}


CALLS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "set_alarm": (("Wake me at {time}.", "Set an alarm for {time}.", "Alarm at {time}, please."), ("time",)),
    "set_timer": (("Start a timer of {minutes} minutes.", "Timer for {minutes} minutes."), ("minutes",)),
    "send_message": (
        ("Tell {contact}: {text}", "Write to {contact} that {text}", "Message {contact}: {text}"),
        ("contact", "text"),
    ),
    "call": (("Call {contact}.", "Ring {contact}.", "Phone {contact}, please."), ("contact",)),
    "play_music": (("Play {title}.", "Put on {title}.", "I want to hear {title}."), ("title",)),
    "open_app": (("Open {app}.", "Start {app}.", "Go to {app}."), ("app",)),
    "navigate": (("Take me to {place}.", "How do I get to {place}?", "Navigate to {place}."), ("place",)),
    "search": (("Search for {query}.", "Look up {query}.", "Find {query} on the web."), ("query",)),
    "set_volume": (("Volume to {percent} percent.", "Make it {percent} percent loud."), ("percent",)),
}
"""Functions of a phone assistant: how they are asked for, and their arguments."""


def call(rng: random.Random, split: str) -> dict[str, Any]:
    """A data line: a wish, and the function call as JSON."""
    name = rng.choice(list(CALLS))
    wishes, fields = CALLS[name]
    made: dict[str, Any] = {}
    for field in fields:
        if field == "time":
            made[field] = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        elif field in ("minutes", "percent"):
            made[field] = rng.randrange(1, 100)
        else:
            made[field] = " ".join(
                word(rng, split) for _ in range(1 if field in ("contact", "app") else rng.randint(1, 3))
            )
    answer = json.dumps({"name": name, "arguments": made}, ensure_ascii=False)
    wish = rng.choice(wishes).format(**made)
    return {"messages": [{"role": "user", "content": wish}, {"role": "assistant", "content": answer}]}
