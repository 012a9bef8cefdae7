"""Write data and tokenizer of a small model that finds what stood in its context; `recipe.toml` trains it.

    python examples/retrieval/prepare.py
    python examples/retrieval/start.py
    andes train examples/retrieval/recipe.toml --out runs/retrieval
    andes okv fit runs/retrieval/model --data examples/retrieval/data/scorer.jsonl --out scorer.safetensors

A user's turn holds facts, and the assistant's turn says many things about them, so that a step has many answers.
`tasks.py` has the four tasks.

Words are made of two syllables, each with a space before it, so that each is one token wherever it stands. Between the
facts of the later files stand sentences of other words, which nobody asks for. Test texts have other seeds.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from andes_qwen3.small import train_small_tokenizer
from tasks import KEYS, OTHERS, TASKS, VALUES, sample, text_of

HERE = Path(__file__).resolve().parent
VOCABULARY = 512


def conversation(rng: random.Random, facts: tuple[int, int], filled: float) -> dict[str, Any]:
    """A line of data. filled: sentences per fact, at most."""
    task, count = rng.choice(TASKS), rng.randint(*facts)
    said, asked = sample(rng, task, count)
    text = text_of(rng, task, said, round(rng.uniform(0, filled) * count))
    some = rng.sample(asked, min(len(asked), 16))
    told = " ".join(f"{before} {answer}" for before, answer in some)
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"so: {told}"}]}


FILES: tuple[tuple[str, tuple[int, int], float], ...] = (("short", (3, 24), 1), ("long", (6, 24), 8))
"""Name, facts in a text, sentences per fact."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000, help="of each file")
    given = parser.parse_args()
    rng, data = random.Random(1), HERE / "data"
    (data / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name, facts, filled in FILES:
        with (data / f"{name}.jsonl").open("w") as file:
            for _ in range(given.samples):
                file.write(json.dumps(conversation(rng, facts, filled)) + "\n")
    with (data / "scorer.jsonl").open("w") as file:  # texts alone, for `andes okv fit`
        for _ in range(120):
            file.write(json.dumps({"messages": conversation(rng, *FILES[-1][1:])["messages"][:1]}) + "\n")
    said = [f" {word}" for word in (*KEYS, *VALUES, *OTHERS, "most")]
    said += [*(f"{task}:" for task in TASKS), "so:", "user", "assistant"]
    tokenizer = train_small_tokenizer(said * 50, VOCABULARY)
    tokenizer.save(str(data / "tokenizer" / "tokenizer.json"))
    print(f"{tokenizer.get_vocab_size()} ids in {data}")


if __name__ == "__main__":
    main()
