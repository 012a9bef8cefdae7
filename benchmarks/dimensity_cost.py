"""The cost model against decode times of the backend "numba" on this machine: five shapes, four formats.

    python benchmarks/dimensity_cost.py --json

A step's time differs by up to a half from one build of a model to the next, by where its memory lies and by what else
the machine does. So each cell is built several times, in turns, and its fastest step counts. One fixed cost and one
cost per layer are fitted to all cells, and a bandwidth to each format, as a format's kernels have their own.

`unseen`: percent by which a shape is off that the fit has not seen in any format. `error`: the largest of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from andes_dimensity.cost import Choice, Machine, Shape, cost, fitted

from andes_sdk import Pipeline

TOKENIZER = Path(__file__).parents[1] / "examples" / "first_light" / "model" / "tokenizer.json"
SHAPES = [(2, 256, 1024), (4, 256, 768), (4, 512, 1536), (8, 256, 1024), (6, 512, 1024)]
"""Layers, width, inner."""
Row = tuple[str, int, float, float]
"""Format, layers, bytes, seconds."""
FORMATS = {"w8": 8.125, "w4_g32": 4.5, "w4_g128": 4.125, "nm14_w4": 1.625}
"""Format -> bits of a weight, scales and places included."""


def measured(shape: tuple[int, int, int], form: str, steps: int) -> tuple[Shape, float]:
    """Seconds of the fastest decode step behind 64 rows, on one thread: what others on the machine take is no cost."""
    layers, width, inner = shape
    config = {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "head_dim": 64,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 128, "vocab_size": 4096,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    qwen = {"config": config, "tokenizer": str(TOKENIZER)}
    numba: dict[str, Any] = {"format": form, "threads": 1}
    pipe = Pipeline.from_plugins(
        [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": qwen}, {"numba": numba}], backend="numba"
    )
    session, spec = pipe.session(), pipe.model.text
    session.extend(list(range(5, 69)))
    session.commit()
    times = []
    for number in range(steps):
        start = time.perf_counter()
        session.extend([number + 5])
        times.append(time.perf_counter() - start)
        session.rollback()
    heads = {"query_heads": spec.query_heads, "kv_heads": spec.kv_heads, "head": spec.head_dim}
    sizes = Shape(layers=layers, width=width, inner=inner, vocab=spec.vocab_size, **heads)
    return sizes, min(times)


def told(machines: dict[str, Machine], row: Row) -> float:
    """Percent that a prediction is off."""
    form, layers, moved, seconds = row
    one = machines[form]
    return 100 * ((one.fixed + layers * one.per_layer + moved / one.bandwidth) / seconds - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3, help="models built for each shape and format")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    fastest: dict[tuple[str, int], float] = {}
    bytes_of: dict[tuple[str, int], float] = {}
    for number in range(given.rounds):
        for form, bits in FORMATS.items():
            for at, shape in enumerate(SHAPES):
                sizes, seconds = measured(shape, form, given.steps)
                fastest[form, at] = min(seconds, fastest.get((form, at), seconds))
                bytes_of[form, at] = cost(sizes, Choice(bits=bits, head_bits=bits, context=64), Machine()).bytes
        print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
    rows: dict[tuple[str, int], Row] = {
        (form, at): (form, SHAPES[at][0], bytes_of[form, at], seconds) for (form, at), seconds in fastest.items()
    }
    machines = fitted(list(rows.values()))
    unseen = {}
    for left in range(len(SHAPES)):
        apart = fitted([row for (_, at), row in rows.items() if at != left])
        unseen |= {key: told(apart, row) for key, row in rows.items() if key[1] == left}
    facts: dict[str, Any] = {
        "error": max(abs(x) for x in unseen.values()), "mean_error": float(np.mean([abs(x) for x in unseen.values()])),
        "fit": max(abs(told(machines, row)) for row in rows.values()),
        "fixed_us": 1e6 * machines["w8"].fixed, "per_layer_us": 1e6 * machines["w8"].per_layer,
        "formats": {
            form: {
                "bandwidth": machines[form].bandwidth,
                "megabytes": [rows[form, n][2] / 1e6 for n in range(len(SHAPES))],
                "milliseconds": [1e3 * fastest[form, n] for n in range(len(SHAPES))],
                "unseen": [unseen[form, n] for n in range(len(SHAPES))],
            }
            for form in FORMATS
        },
    }  # fmt: skip
    print(json.dumps(facts, indent=2) if given.json else facts)


if __name__ == "__main__":
    main()
