"""Guess tokens and verify them in one pass: the same text in fewer passes.

    python examples/speculate.py
    python examples/speculate.py --model MODEL --text "Repeat: one two three"

Without a model it is the small one of `examples/retrieval`, which looks keys up in a text. A corpus file says what was
answered before, as a log of conversations would. Sampling takes the same tokens, too. Where guessing does not pay, it
stops.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions

OWN = Path(__file__).parent / "retrieval" / "model"
TEXT = "keys: balan bydim. coner cufen. mosha nevek puzun. depit dygor. firud fohap. gusek gejil."


def answer(pipe: Pipeline, text: str, options: GenerationOptions) -> tuple[list[int], int, dict[str, float]]:
    """Tokens of an answer, how many passes it took, and what the decoder says of them."""
    engine = evolve(pipe.engine(), ends=())
    one = engine.join(pipe.prepare([{"role": "user", "content": text}]), options)
    passes = 0
    while engine.active:
        engine.step()
        passes += 1
    if one.error is not None:
        raise one.error
    notes = dict(one.session.stats.notes)
    one.session.close()
    return list(one.tokens), passes, notes


def main(model: str = "", text: str = TEXT, tokens: int = 48) -> dict[str, int]:
    """Print passes with and without guesses -> passes by name."""
    passes: dict[str, int] = {}
    place = model or str(OWN)
    plain = Pipeline.from_pretrained(place)
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before.txt"
        before.write_text(plain.tokenizer.decode(answer(plain, text, GenerationOptions(max_tokens=tokens))[0]))
        # a fixed price, so that the figures are the same everywhere; without it the price is measured
        ways: dict[str, dict[str, Any]] = {"suffix": {}, "suffix, corpus": {"corpus": str(before)}}
        pipes = {
            n: Pipeline.from_pretrained(place, plugins=[{"speculative": {"row_cost": 0.05, **o}}])
            for n, o in ways.items()
        }
        for temperature in (0.0, 0.5):
            options = GenerationOptions(max_tokens=tokens, temperature=temperature, seed=1)
            wanted = answer(plain, text, options)
            passes[f"plain, temperature {temperature}"] = wanted[1]
            print(f"temperature {temperature}: {plain.tokenizer.decode(wanted[0])[:60]!r}…, {wanted[1]} passes")
            for name, pipe in pipes.items():
                made = answer(pipe, text, options)
                assert made[0] == wanted[0], "the text must not change"
                passes[f"{name}, temperature {temperature}"] = made[1]
                print(f"  {name}: the same text in {made[1]} passes")
                print("    " + ", ".join(f"{what} {value:.4g}" for what, value in made[2].items()))
        for row in pipes["suffix"].explain().rows:
            if row.owner == "speculative":
                print(f"  {row.part}: {row.value}")
    return passes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a folder, a file or a name")
    parser.add_argument("--text", default=TEXT, help="what is asked")
    parser.add_argument("--tokens", type=int, default=48, help="length of the answers")
    given = parser.parse_args()
    main(given.model, given.text, given.tokens)
