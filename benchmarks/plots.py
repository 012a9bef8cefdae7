"""Draws the plots of the documentation from the figures in `docs/results`.

    python benchmarks/plots.py

Facts found by cache policy, tokens a pass by kind of prompt, and the speed with fewer bits, fewer rows and guesses.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import kv_plots
import matplotlib
import speculative
import stacked

RESULTS = Path(__file__).resolve().parents[1] / "docs/results"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the plots")
    given = parser.parse_args()
    matplotlib.rcParams["svg.hashsalt"] = "andes"  # the same file each time
    matplotlib.rcParams["svg.fonttype"] = "none"
    told = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("kv", "speculative", "stacked")}
    kv_plots.curves(told["kv"]["runs"][told["kv"]["plot"]]["budgets"], given.out / "kv.svg")
    runs = told["speculative"]["runs"]
    bars = {
        f"{run}, {body}": kinds for run in told["speculative"]["plot"] for body, kinds in runs[run]["details"].items()
    }
    speculative.draw(bars, given.out / "speculative.svg")
    stacked.draw(told["stacked"]["runs"][told["stacked"]["plot"]]["factors"], given.out / "stacked.svg")


if __name__ == "__main__":
    main()
