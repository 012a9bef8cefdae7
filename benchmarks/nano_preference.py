"""What MPO adds to andes-nano after supervised fine-tuning, beside the same training on right answers alone.

    python examples/nano/prepare.py                                # data
    python benchmarks/nano_preference.py --json                    # pairs, two trainings, scores; goes on if stopped

The model answers questions of its training data several times; a right and a wrong answer to one question make a pair.
`examples/nano/6-mpo.toml` learns from the pairs. The control is the same run without the losses that look at wrong
answers. All three models answer the same held-out questions of `examples/nano/held_out`; differences are paired, with
the 95 % interval of a bootstrap over questions. Of `/error`, the share of characters that are wrong, less is better.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from andes_mpo.pairs import PairBuilder, PairOptions
from andes_training.progress import Progress
from andes_training.recipe import load_recipe, open_pipeline
from rich.console import Console

from andes_sdk import Pipeline
from andes_sdk.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "examples" / "nano"
sys.path[:0] = [str(NANO), str(ROOT / "benchmarks")]
from held_out import OUT  # noqa: E402
from nano import answers_of, by_name, read, right, spread  # noqa: E402
from prompts import questions  # noqa: E402

PARTS = ("elements", "line", "shapes", "easy", "digit", "two", "chart", "call")
KINDS = {"mpo": {}, "right_answers": {"dpo": 0.0, "bco": 0.0}}
"""What is trained -> weights of losses that differ from the recipe."""


def scored(model: Path, limit: int) -> dict[str, list[float]]:
    """Part and kind -> a score for each held-out question."""
    pipe = Pipeline.from_pretrained(model)
    found = {}
    for part in PARTS:
        for name, items in by_name(read(OUT / f"{part}.jsonl", part)).items():
            some = spread(items, limit)
            found[name] = [right(i, a) for i, a in zip(some, answers_of(pipe, some, name), strict=True)]
    return found


def change(before: list[float], after: list[float]) -> dict[str, float]:
    """Means, and the paired difference in points with its interval."""
    gaps = 100.0 * (np.array(after) - np.array(before))
    drawn = np.random.default_rng(0).choice(gaps, (4000, len(gaps))).mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    made = {"before": np.mean(before), "after": np.mean(after)}
    made |= {"points": gaps.mean(), "low": low, "high": high}
    return {key: round(float(value), 4) for key, value in made.items()} | {"n": len(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT / "runs" / "nano" / "5-sft" / "model")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "preference", help="states and models")
    parser.add_argument("--prompts", type=int, default=1200, help="questions that are answered several times")
    parser.add_argument("--k", type=int, default=6, help="answers to each")
    parser.add_argument("--set", action="append", default=[], help="of the recipe, such as stages.0.steps=40")
    parser.add_argument("--limit", type=int, default=200, help="held-out questions of each part and kind")
    parser.add_argument("--out", type=Path, help="a file of JSON for the figures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.start.is_dir():
        parser.error(f"{args.start} is missing: andes train examples/nano/5-sft.toml --out runs/nano/5-sft")
    console, began = Console(stderr=True), time.process_time()
    args.runs.mkdir(parents=True, exist_ok=True)
    # pictures of prompts are named relative to the data, so prompts and pairs lie beside them
    data = NANO / "data" / "train"
    prompts, pairs = data / "preference-prompts.jsonl", data / "preference-pairs.jsonl"
    rows = list(questions(data))
    count = min(args.prompts, len(rows))
    kept = [rows[n * len(rows) // count] for n in range(count)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    if not prompts.is_file() or prompts.read_text(encoding="utf-8") != text:
        write_atomically(prompts, text.encode())
    teacher = Pipeline.from_pretrained(args.start, plugins=["verifiers"])
    counts = PairBuilder(teacher, prompts, pairs, PairOptions(reward="exact", k=args.k, max_tokens=96, batch=32)).run()
    built = time.process_time()
    before = scored(args.start, args.limit)
    result: dict[str, Any] = {"pairs": counts, "seconds": {"pairs": round(built - began)}}
    for name, weights in KINDS.items():
        own = [f'start="{args.start.resolve()}"', f'stages.0.data=[{{path = "{pairs}"}}]', *args.set]
        own += [f"pipeline.plugins.0.mpo.{key}={value}" for key, value in weights.items()]
        recipe, started = load_recipe(NANO / "6-mpo.toml", own), time.process_time()
        with Progress(args.runs / name, console, [recipe.stages[0].steps or 0]) as progress:
            model = open_pipeline(recipe).train(recipe, args.runs / name, progress=progress)
        result["seconds"][name] = round(time.process_time() - started)
        after = scored(model, args.limit)
        result[name] = {part: change(before[part], after[part]) for part in before}
    if args.out:
        write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
