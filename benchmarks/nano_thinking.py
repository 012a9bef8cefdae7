"""What GRPO adds to the Thinking model of andes-nano, on puzzles that no stage has seen.

    python examples/nano/prepare.py thought sums call                          # data of the stage before
    andes train examples/nano/6-thinking.toml --out runs/nano/6-thinking       # learns to think from solved puzzles
    python benchmarks/nano_thinking.py --json                         # GRPO from there, three seeds, two orders

Every seed trains `examples/nano/7-grpo.toml` twice: with puzzles from easy to hard, by the share of eight answers that
are right, and with the same puzzles shuffled. All models answer the same test puzzles, with words that training never
saw: greedily with thoughts, sampled at temperature 1 with thoughts, which is what GRPO trains, and without thoughts.
A gain is paired by puzzle; its interval is a bootstrap over puzzles and seeds together. A run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from andes_evaluation.figures import wilson
from andes_grpo.curriculum import Measurement, measure
from andes_training.progress import Progress
from andes_training.recipe import load_recipe, open_pipeline
from rich.console import Console

from andes_sdk import Pipeline
from andes_sdk.files import write_atomically
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "examples" / "nano"
sys.path.insert(0, str(NANO))
import language  # noqa: E402
from held_out import drawn, learnt  # noqa: E402
from prompts import puzzles  # noqa: E402

RECIPE = NANO / "7-grpo.toml"
BATCH = 200


def tests(count: int) -> list[dict[str, Any]]:
    """Puzzles of the test split, with their answers, that are in no data of training."""
    seeds = (f"nano/train/{part}/{n}" for part, count in language.LINES.items() for n in range(count))
    known = learnt([*(reasoning(seed, "train") for seed in seeds), *puzzles()])
    made, number = [], 0
    while len(made) < count:
        row = reasoning(f"nano/test/thought/{number}", "test")
        question, answer = (message["content"] for message in row["messages"])
        number += 1
        if drawn(question) not in known:
            made.append({"question": question, "answer": answer})
    return made


def reasoning(seed: str, split: str) -> dict[str, Any]:
    """The puzzle of a seed, as `prepare.py` makes it."""
    return language.reasoning(random.Random(seed), split, think=False)


MODES = {"greedy": (True, 0.0), "sampled": (True, 1.0), "direct": (False, 0.0)}
"""How puzzles are answered: with thoughts or without, and the temperature."""


def right(pipe: Pipeline, items: Sequence[Mapping[str, Any]], mode: str) -> list[bool]:
    """Whether each puzzle's answer, after its thoughts, is the right one."""
    found = []
    think, temperature = MODES[mode]
    options = GenerationOptions(max_tokens=96 if think else 16, temperature=temperature, seed=1, think=think)
    for at in range(0, len(items), BATCH):
        some = items[at : at + BATCH]
        answers = pipe.generate_batch([[{"role": "user", "content": i["question"]}] for i in some], options)
        found += [a.text.rpartition("</think>")[2].strip() == i["answer"] for i, a in zip(some, answers, strict=True)]
    return found


def gain(before: Sequence[bool], after: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Points won, with the 95 % interval of a bootstrap over puzzles and seeds."""
    won = 100.0 * (np.array(after, float) - np.array(before, float))
    rng = np.random.default_rng(0)
    means = []
    for _ in range(4000):
        seeds = rng.integers(0, len(won), len(won))
        means.append(won[seeds][:, rng.integers(0, won.shape[1], won.shape[1])].mean())
    low, high = np.percentile(means, (2.5, 97.5))
    return {"points": round(float(won.mean()), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def share(found: Sequence[bool]) -> dict[str, float]:
    """A share of right answers with Wilson's interval."""
    f = wilson(sum(found), len(found))
    return {"value": round(f.value, 4), "low": round(f.low, 4), "high": round(f.high, 4), "n": len(found)}


ORDERS = {"curriculum": "file", "shuffled": "shuffle"}


def train(out: Path, start: Path, data: Path, sets: Sequence[str], console: Console) -> tuple[Path, float]:
    """One run of GRPO -> its model, and the seconds its steps took."""
    own = [f'start="{start.resolve()}"', f'stages.0.data=[{{path = "{data.resolve()}"}}]', *sets]
    recipe = load_recipe(RECIPE, own)
    with Progress(out, console, [recipe.stages[0].steps or 0]) as progress:
        model = open_pipeline(recipe).train(recipe, out, progress=progress)
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return model, sum(step.get("seconds", 0.0) for step in steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT / "runs" / "nano" / "6-thinking" / "model")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "nano" / "grpo", help="data, states and models")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS))
    parser.add_argument("--steps", type=int, help="of GRPO; those of the recipe, unless given")
    parser.add_argument("--prompts", type=int, default=600, help="puzzles that GRPO sees")
    parser.add_argument("--tests", type=int, default=600)
    parser.add_argument("--out", type=Path, help="a file of JSON for the figures")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.start.is_dir():
        parser.error(f"{args.start} is missing: andes train examples/nano/6-thinking.toml --out runs/nano/6-thinking")
    console = Console(stderr=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    prompts, ordered = args.runs / "puzzles.jsonl", args.runs / "ordered.jsonl"
    rows = [row for _, row in zip(range(args.prompts), puzzles(), strict=False)]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    if prompts.is_file() and prompts.read_text(encoding="utf-8") != text:
        parser.error(f"{prompts} has other puzzles: give its --prompts, or another --runs")
    write_atomically(prompts, text.encode())
    if not ordered.is_file():
        how = Measurement(reward="exact", samples=8, max_answer=96)
        measure(Pipeline.from_pretrained(args.start, plugins=["verifiers"]), prompts, ordered, how, drop=True)
    items = tests(args.tests)
    models = {"before": (args.start, 0.0)}
    for order in args.orders:
        for seed in range(args.seeds):
            sets = [f"seed={seed}", f'pipeline.plugins.2.grpo.order="{ORDERS[order]}"']
            sets += [f"stages.0.steps={args.steps}"] if args.steps else []
            name = f"{order}-{seed}"
            models[name] = train(args.runs / name, args.start, ordered, sets, console)
    answered = {}
    for name, (model, _) in models.items():
        pipe = Pipeline.from_pretrained(model)
        answered[name] = {mode: right(pipe, items, mode) for mode in MODES}
    result: dict[str, Any] = {"tests": args.tests, "prompts": args.prompts, "seeds": args.seeds}
    result["runs"] = {
        name: {mode: share(found) for mode, found in modes.items()} | {"seconds": round(models[name][1])}
        for name, modes in answered.items()
    }
    for order in args.orders:
        after = [modes for name, modes in answered.items() if name.startswith(order)]
        result[order] = {mode: gain(answered["before"][mode], [m[mode] for m in after]) for mode in MODES}
    if args.out:
        write_atomically(args.out, (json.dumps(result, indent=1) + "\n").encode())
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
