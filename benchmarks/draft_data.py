"""Prompts for draft heads: prose, screens told in text, and things to copy, none of them those of `speculative.py`.

    python benchmarks/draft_data.py draft_train.jsonl --prompts 600
    python benchmarks/draft_data.py copies.jsonl --prompts 60 --copies    # with the right answers, for replay_drafts.py
    andes draft train MODEL -p aimv2 -p mlp -o aimv2.preset=tiny --data draft_train.jsonl --out runs/head

A head learns from the answers that its model gives. The kinds take turns.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from kv_data import ADJECTIVES, NOUNS, TAILS, VERBS, fact, name, number, sentence

FORMS = ("Write a short text about {}.", "Tell me about {}.", "What do you think of {}?", "Describe {} briefly.",
         "Write a letter about {}.", "Explain {} to a child.")  # fmt: skip
KINDS = ("button", "switch", "text", "tab", "field", "card", "item", "icon")
LABELS = ("Sign in", "Sign out", "Help", "Send", "Reply", "Play", "Stop", "Delete", "Share", "Language", "Volume",
          "Sound", "Battery", "Profile", "Photos", "Map", "Next", "Save", "Cancel", "Orders", "Weather")  # fmt: skip
TASKS = ("List every element as JSON with name, kind, x and y.", "Describe this screen in two sentences.",
         "Which elements can be tapped, and where? Answer one by one.", "What can I do here?")  # fmt: skip


def prose(rng: random.Random) -> str:
    """Something to write about."""
    topic = rng.choice((
        f"a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", f"a {rng.choice(NOUNS)} that {rng.choice(VERBS)} a "
        f"{rng.choice(NOUNS)} {rng.choice(TAILS)}", f"the {rng.choice(NOUNS)} of {name(rng)}",
    ))  # fmt: skip
    return rng.choice(FORMS).format(topic)


def screen(rng: random.Random) -> str:
    """A screen and a task."""
    elements = ", ".join(
        f"{rng.choice(KINDS)} {label} ({rng.randrange(360)}, {rng.randrange(640)})"
        for label in rng.sample(LABELS, rng.randint(3, 6))
    )
    title = rng.choice(("Home", "Account", "Player", "Chat", "Camera", "Calendar", "Travel", "Bank"))
    return f"A screen has these elements with their places:\n{title}: {elements}\n{rng.choice(TASKS)}"


def copied(rng: random.Random) -> tuple[str, str]:
    """Text to transcribe, JSON to repair, code to edit -> the prompt and the right answer."""
    kind = rng.randrange(3)
    if kind == 0:
        some = " ".join(rng.choice((fact, sentence))(rng) for _ in range(rng.randint(2, 4)))
        return f"Transcribe this text exactly:\n{some}", some
    if kind == 1:
        values = [rng.choice((name(rng), int(number(rng)), [name(rng), name(rng)])) for _ in range(4)]
        whole = json.dumps({name(rng).lower(): value for value in values})
        at = rng.randrange(1, len(whole))
        return f"Repair this JSON and write nothing else:\n{whole[: at - 1] + whole[at:]}", whole
    a, b, f, c = (name(rng).lower() for _ in range(4))
    sign, start = rng.choice("+-*"), number(rng)

    def code(c: str) -> str:
        return f"def {f}({a}):\n    {c} = {start}\n    for x in {a}:\n        {c} {sign}= x\n    return {c}"

    return f"Rename the variable {c} to {b} in this code and write the whole code:\n{code(c)}", code(b)


def copy(rng: random.Random) -> str:
    """The prompt alone."""
    return copied(rng)[0]


MAKERS: tuple[Callable[[random.Random], str], ...] = (prose, screen, copy)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--copies", action="store_true", help="things to copy alone, with the right answers")
    parser.add_argument("--seed", type=int, default=5)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with given.out.open("w") as file:
        for n in range(given.prompts):
            if given.copies:
                prompt, answer = copied(rng)
                talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            else:
                talk = [{"role": "user", "content": MAKERS[n % len(MAKERS)](rng)}]
            file.write(json.dumps({"messages": talk}) + "\n")


if __name__ == "__main__":
    main()
