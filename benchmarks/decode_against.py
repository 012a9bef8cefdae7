"""The numba backend of this checkout and of another one, in turns: what a change costs or brings.

    git worktree add ../before COMMIT && make -C ../before setup
    python benchmarks/decode_against.py ../before --json
    python benchmarks/decode_against.py ../before --weights w4_g32 --rounds 9

Each checkout writes models of the shape of Qwen3-0.6B in its own format, and runs them in a process of its own with its
own environment. In each round both decode and both read a prompt, the one that is first changing from round to round.
A ratio is this checkout's speed to the other's within one round; reported are the median and the quartiles over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decode import HERE, Spec, Worker
from rich.console import Console
from rich.progress import track

WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from decode_models import write_artefact
print(write_artefact(Path(sys.argv[2]), sys.argv[3], sys.argv[3]))
"""


def script(tree: Path) -> tuple[Path, Path]:
    """The Python and the worker of a checkout."""
    found = tree / ".venv" / "bin" / "python", tree / "benchmarks" / "decode_worker.py"
    for part in found:
        if not part.exists():
            raise SystemExit(f"{part} is missing: a checkout needs its own environment (make -C {tree} setup)")
    return found


def open_worker(tree: Path, weights: str, folder: Path, context: int) -> Worker:
    """Write a model with a checkout's code, and load it."""
    python, worker = (sys.executable, HERE / "decode_worker.py") if tree == HERE.parent else script(tree)
    path = folder / f"{'this' if tree == HERE.parent else 'other'}-{weights}.andes"
    # its folder is where `-c` looks for modules first
    size = int(subprocess.check_output([python, "-c", WRITE, tree / "benchmarks", path, weights], cwd=tree))
    return Worker.start(Spec("numba", weights), path, size, os.cpu_count() or 1, context, (python, worker))


def compare(weights: str, other: Path, rounds: int, tokens: int, rows: int) -> dict[str, Any]:
    """One format, both checkouts -> ratios and medians."""
    with tempfile.TemporaryDirectory() as folder:
        workers = [open_worker(tree, weights, Path(folder), rows + 64) for tree in (HERE.parent, other)]
        try:
            for worker in workers:
                worker.ask(do="prefill", rows=rows)  # warm
            for n in track(range(rounds), f"{weights}, rounds", console=Console(stderr=True)):
                for worker in workers if n % 2 else reversed(workers):
                    worker.ask(do="context", rows=64)
                    worker.time_decode(64, tokens)
                    worker.time_prefill(rows)
        finally:
            for worker in workers:
                worker.process.kill()
    this, before = workers
    return {
        "weights": weights,
        "rounds": rounds,
        **_ratio("decode", this.decode[64], before.decode[64]),
        **_ratio("prefill", this.prefill[rows], before.prefill[rows]),
    }


def _ratio(name: str, this: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    found = [a / b for a, b in zip(this, other, strict=True)]
    low, middle, high = statistics.quantiles(found, n=4)
    return {
        name: round(middle, 3), f"{name}_quartiles": [round(low, 3), round(high, 3)],
        f"{name}_per_s": [round(statistics.median(x), 1) for x in (this, other)],
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    head = "| weights | rounds | decode | quartiles | prompt | quartiles |\n|---|---|---|---|---|---|"
    lines = [
        f"| {r['weights']} | {r['rounds']} | {r['decode']:.3f} | {_range(r['decode_quartiles'])} "
        f"| {r['prefill']:.3f} | {_range(r['prefill_quartiles'])} |"
        for r in rows
    ]
    return "\n".join([head, *lines])


def _range(pair: Sequence[float]) -> str:
    return f"{pair[0]:.3f} to {pair[1]:.3f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout, with an environment in its .venv")
    parser.add_argument("--weights", nargs="+", default=["w4_g32", "nm14_w4"], metavar="FORMAT")
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--tokens", type=int, default=32, help="decoded in each round")
    parser.add_argument("--rows", type=int, default=512, help="of the prompt")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds: at least 2, or there are no quartiles")
    script(given.other.resolve())  # before the minutes that the models take
    rows = [compare(w, given.other.resolve(), given.rounds, given.tokens, given.rows) for w in given.weights]
    print(json.dumps(rows, indent=1) if given.json else table(rows))


if __name__ == "__main__":
    main()
