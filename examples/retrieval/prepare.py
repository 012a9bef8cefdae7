"""Write data and tokenizer of a small model that finds what stood in its context; `recipe.toml` trains it.

    python examples/retrieval/prepare.py
    andes train examples/retrieval/recipe.toml --out runs/retrieval

So far it has not learnt to copy: after 2,200 steps its answers are no better than guesses (docs/log.md).

A user's turn is a list of lines, and the assistant's turn says many things about it, so that a step has many answers.

| task | a line | the assistant says |
|---|---|---|
| `keys` | a key and its value | a key, its value; for many keys |
| `values` | the same, some keys twice | a key, its values in the order of the text |
| `tracking` | a variable and a value, or a variable and an earlier one | a variable, the value behind it |
| `common` | a word | the word that stands there most often |

Words are made of two syllables. Test texts have other seeds, so other pairs.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path

from andes_qwen3.small import train_small_tokenizer

HERE = Path(__file__).resolve().parent
KEYS = tuple(
    a + b
    for a in ("ba", "co", "de", "fi", "gu", "ha", "jo", "ki")
    for b in ("lan", "mer", "nos", "pit", "rud", "sek", "tav", "wox")
)
VALUES = tuple(
    a + b
    for a in ("by", "cu", "dy", "fo", "ge", "hy", "ja", "ke")
    for b in ("dim", "fen", "gor", "hap", "jil", "kut", "lob", "mez")
)
TASKS = ("keys", "values", "tracking", "common")
VOCABULARY = 512


def sample(rng: random.Random, task: str, lines: int) -> tuple[str, list[tuple[str, str]]]:
    """A text of so many lines, at most 60, and what can be asked: (what stands before the answer, the answer)."""
    if task == "common":
        few = rng.sample(VALUES, 6)
        often = few[0]
        words = [often] * (lines // 3) + [rng.choice(few[1:]) for _ in range(lines - lines // 3)]
        rng.shuffle(words)
        if Counter(words).most_common(1)[0][0] != often:
            return sample(rng, task, lines)
        return ", ".join(words), [("most", often)]
    if task == "tracking":
        names = rng.sample(KEYS, lines)
        told: list[tuple[str, str]] = []
        said = []
        for name in names:
            if told and rng.random() < 0.5:
                other, value = rng.choice(told)
                said.append(f"{name} {other}")
            else:
                value = rng.choice(VALUES)
                said.append(f"{name} {value}")
            told.append((name, value))
        return ", ".join(said), told
    names = rng.sample(KEYS, lines if task == "keys" else lines - lines // 3)
    pairs = [(name, rng.choice(VALUES)) for name in names]
    if task == "values":
        pairs += [(name, rng.choice(VALUES)) for name in rng.sample(names, lines // 3)]
        rng.shuffle(pairs)
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return ", ".join(map(" ".join, pairs)), [(name, " ".join(values)) for name, values in found.items()]


def conversation(rng: random.Random, task: str, lines: int) -> dict[str, object]:
    """A line of data."""
    text, asked = sample(rng, task, lines)
    some = rng.sample(asked, min(len(asked), 16))
    told = ", ".join(f"{before} {answer}" for before, answer in some)
    return {"messages": [{"role": "user", "content": f"{task}: {text}"}, {"role": "assistant", "content": told}]}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="of each file")
    given = parser.parse_args()
    rng, data = random.Random(1), HERE / "data"
    (data / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, tasks, sizes in (("short", ("keys",), (4, 16)), ("long", TASKS, (8, 48))):
        with (data / f"{name}.jsonl").open("w") as file:
            for _ in range(given.samples):
                file.write(json.dumps(conversation(rng, rng.choice(tasks), rng.randint(*sizes))) + "\n")
    corpus = [f" {word}" for word in (*KEYS, *VALUES, *(f"{t}:" for t in TASKS), "most") for _ in range(50)]
    tokenizer = train_small_tokenizer(corpus, VOCABULARY)
    tokenizer.save(str(data / "tokenizer" / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} ids;", tokenizer.encode(" balan kemez, most").tokens)


if __name__ == "__main__":
    main()
