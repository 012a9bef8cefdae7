"""Guess tokens and verify them in one pass: the same text in fewer passes.

    python examples/speculate.py

The model is tiny and random, so its greedy answers soon repeat themselves, which flatters guessing. The text does not
depend on what is guessed. Where guessing does not pay, it stops.
"""

from __future__ import annotations

import argparse
from typing import Any

from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def answer(pipe: Pipeline, text: str, options: GenerationOptions) -> tuple[list[int], int, dict[str, float]]:
    """Tokens of an answer, how many passes it took, and what the decoder says of them."""
    engine = evolve(pipe.engine(), ends=())
    one = engine.join(pipe.prepare([{"role": "user", "content": text}]), options)
    passes = 0
    while engine.active:
        engine.step()
        passes += 1
    notes = dict(one.session.stats.notes)
    one.session.close()
    return list(one.tokens), passes, notes


def main(tokens: int = 64) -> dict[str, int]:
    """Print passes with and without guesses -> passes by name."""
    passes = {}
    for temperature in (0.0, 0.5):
        options = GenerationOptions(max_tokens=tokens, temperature=temperature, seed=1)
        plain = answer(Pipeline.from_plugins(MODEL), "copy this: one two three", options)
        # a fixed price, so that the figures are the same everywhere; without it the price is measured
        guessing = Pipeline.from_plugins([*MODEL, {"speculative": {"row_cost": 0.05}}])
        made = answer(guessing, "copy this: one two three", options)
        assert made[0] == plain[0], "the text must not change"
        passes |= {f"plain, temperature {temperature}": plain[1], f"suffix, temperature {temperature}": made[1]}
        print(f"temperature {temperature}: {len(made[0])} tokens in {plain[1]} passes, with guesses in {made[1]}")
        print("  " + ", ".join(f"{name} {value:.4g}" for name, value in made[2].items()))
    for row in guessing.explain().rows:
        if row.owner == "speculative":
            print(f"  {row.part}: {row.value}")
    return passes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="length of the answers")
    main(parser.parse_args().tokens)
