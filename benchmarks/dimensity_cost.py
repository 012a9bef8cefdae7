"""The cost model against decode times of the backend "numba" on this machine: five shapes, four formats.

    python benchmarks/dimensity_cost.py --json

One machine is fitted to each format, as a format's kernels reach a bandwidth of their own. `error` is the largest
relative error of a shape that the fit did not see (each is left out once), in percent; `fit` that of all together.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from andes_dimensity.cost import Choice, Shape, cost, fitted
from attrs import evolve

from andes_sdk import Pipeline

TOKENIZER = Path(__file__).parents[1] / "examples" / "first_light" / "model" / "tokenizer.json"
SHAPES = [(2, 256, 1024), (4, 256, 768), (4, 512, 1536), (8, 256, 1024), (6, 512, 1024)]
"""Layers, width, inner."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    facts: dict[str, Any] = {"formats": {}}
    for form in given.formats:
        rows = []
        for shape in SHAPES:
            sizes, seconds = measured(shape, form, given.steps)
            choice = Choice(bits=FORMATS[form], head_bits=FORMATS[form], context=64)
            rows.append((sizes.layers, cost(sizes, choice, fitted([(1, 1.0, 1.0)] * 3)).bytes, seconds))

        def error(seen: list[Any], asked: list[Any]) -> float:
            machine = fitted(seen)
            told = [machine.fixed + n * machine.per_layer + b / machine.bandwidth for n, b, _ in asked]
            return max(100 * abs(t / s - 1) for t, (*_, s) in zip(told, asked, strict=True))

        apart = [error([r for r in rows if r is not left], [left]) for left in rows]
        machine = evolve(fitted(rows))
        facts["formats"][form] = {
            "milliseconds": [1e3 * s for *_, s in rows], "fit": error(rows, rows), "left_out": apart,
            "bandwidth": machine.bandwidth, "fixed_us": 1e6 * machine.fixed, "per_layer_us": 1e6 * machine.per_layer,
        }  # fmt: skip
    facts["error"] = float(np.max([f["left_out"] for f in facts["formats"].values()]))
    facts["fit"] = float(np.max([f["fit"] for f in facts["formats"].values()]))
    print(json.dumps(facts, indent=2) if given.json else facts)


if __name__ == "__main__":
    main()
