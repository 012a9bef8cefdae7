"""c(k), the time of a pass with k rows over that of one row: what verifying drafts costs, at the shape of Qwen3-0.6B.

    python benchmarks/few_rows.py
    python benchmarks/few_rows.py --weights w4_g32 --rows 1 16 --rounds 31
    python benchmarks/few_rows.py --json > docs/results/few_rows.json

Weights are random, embedding and LM head are one matrix. Passes of all sizes and formats take turns behind 64 rows of
context; a ratio is one of medians over rounds. `quartiles` are those of the pass. `macs` are the products of stored
weights and activations that a pass has to add up, `bytes` the weights that it reads. `bound_ms` is what they take at
the machine's limits, whichever takes longer: a loop that only multiplies bytes, and one that only reads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from decode import WEIGHTS
from decode_models import write_artefact
from stream_kernel import DOTS, read
from stream_kernel import multiply as multiply_bytes

from andes_sdk import Pipeline
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Work

FORMATS = ("nm14_w4", "nm14_w2", "w4_g32")
ROWS = (1, 2, 4, 8, 11, 16)
CONTEXT = 64


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def limits(threads: int) -> dict[str, float]:
    """What the machine can do at best: GB read, and billions of byte products added, in a second."""
    words, sums = np.ones(1 << 29, np.uint8), np.zeros((threads, 2048), np.uint8)
    loops = 1 << 22

    def only_read() -> None:
        read(words.ctypes.data, words.size // 256, sums.ctypes.data, threads)

    def only_multiply() -> None:
        multiply_bytes(loops, sums.ctypes.data, threads)

    only_read(), only_multiply()  # compiles
    best = [min(seconds(run) for _ in range(7)) for run in (only_read, only_multiply)]
    return {"gb_per_s": words.size / best[0] / 1e9, "gmacs_per_s": threads * loops * DOTS * 64 / best[1] / 1e9}


class Model:
    """A model, and its passes."""

    def __init__(self, folder: Path, weights: str, threads: int) -> None:
        path = folder / f"{weights}.andes"
        self.size = write_artefact(path, weights, weights)
        pipe = Pipeline.from_pretrained(path, backend={"numba": {"threads": threads, "compiling": "first"}})
        self._compiled = pipe.compiled
        self._session = self._compiled.session(KeepAll())
        self._compiled.step([Work(session=self._session, tokens=[0] * CONTEXT, logits=0)])
        self._session.commit()
        self.macs = WEIGHTS // (4 if weights.startswith("nm") else 1)
        self.facts = dict(self._compiled.facts())

    def verify(self, rows: int) -> float:
        """Seconds of a pass that is taken back."""
        took = seconds(lambda: self._compiled.step([Work(session=self._session, tokens=[0] * rows)]))
        self._session.rollback()
        return took


def measure(names: Sequence[str], rows: Sequence[int], rounds: int, threads: int) -> dict[str, Any]:
    """Everything that is printed."""
    with tempfile.TemporaryDirectory() as folder:
        models = {name: Model(Path(folder), name, threads) for name in names}
        best = limits(threads)
        times: dict[tuple[str, int], list[float]] = {(name, k): [] for name in names for k in rows}
        for model in models.values():
            for k in rows:
                model.verify(k)  # warm
        for turn in range(rounds):
            for name, model in models.items():
                for k in rows if turn % 2 else reversed(rows):
                    model.verify(1)  # whoever comes first finds the caches full of another model
                    times[name, k].append(model.verify(k))
        return {
            "threads": threads, "rounds": rounds, "context": CONTEXT,
            "kernels": next(iter(models.values())).facts["kernels"],
            "limits": {name: round(value, 1) for name, value in best.items()},
            "models": {
                name: [figures(times[name, k], times[name, rows[0]], model, k, best) for k in rows]
                for name, model in models.items()
            },
        }  # fmt: skip


def figures(
    times: Sequence[float], one: Sequence[float], model: Model, rows: int, best: Mapping[str, float]
) -> dict[str, Any]:
    """Of the passes of one size."""
    low, middle, high = (1e3 * q for q in statistics.quantiles(times, n=4))
    bound = max(model.size / best["gb_per_s"], rows * model.macs / best["gmacs_per_s"]) / 1e6
    return {
        "rows": rows, "ms": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)],
        "c": round(middle / 1e3 / statistics.median(one), 2),
        "macs": rows * model.macs, "bytes": model.size, "bound_ms": round(bound, 2),
    }  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        ", ".join(f"{name} {value}" for name, value in {**found["limits"], "threads": found["threads"]}.items()), "",
        "| body + head | rows | ms (quartiles) | c(rows) | 10⁹ products | MB read | at the limits, ms |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {name} | {one['rows']} | {one['ms']} ({one['quartiles'][0]} to {one['quartiles'][1]}) | {one['c']} "
        f"| {one['macs'] / 1e9:.2f} | {one['bytes'] / 1e6:.0f} | {one['bound_ms']} |"
        for name, sizes in found["models"].items()
        for one in sizes
    ]
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", nargs="+", default=FORMATS, metavar="FORMAT")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="of a pass; ratios are to the first of them")
    parser.add_argument("--rounds", type=int, default=21, help="at least 2")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds: at least 2, or there are no quartiles")
    torch.set_num_threads(1)
    numba.set_num_threads(given.threads)
    found = measure(given.weights, given.rows, given.rounds, given.threads)
    print(json.dumps(found, indent=1) if given.json else table(found), file=sys.stdout)


if __name__ == "__main__":
    main()
