"""What GRPO adds to a small language model after supervised fine-tuning: a task of reasoning-gym, from random weights.

    python benchmarks/grpo.py --json                           # about seven CPU-minutes on one thread
    python benchmarks/grpo.py --out FOLDER                     # keep data, states, models; goes on where it stopped

A model of 0.9 M parameters (Qwen3's architecture) sees solved sums, which it learns in part. From there GRPO sees new
sums without their answers, and a reward of 1 or 0 for each answer of its own. The control goes on with the solved sums
at a low rate instead. All three models answer the same sums that none has seen: once greedily, and once sampled at
temperature 1, which is what GRPO trains. Intervals are Wilson's at 95 %; p is McNemar's exact test on paired answers,
against the model after supervised fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from andes_grpo.gym import entries, question_of, write_lines
from andes_qwen3.small import train_small_tokenizer
from andes_training.progress import Progress
from andes_training.recipe import Recipe
from rich.console import Console
from rich.table import Table

from andes_sdk import Pipeline
from andes_sdk.config import structure
from andes_sdk.runtime.generation import GenerationOptions

TASK = "chain_sum"
OPTIONS = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
MODEL = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 416, "max_position_embeddings": 256,
}  # fmt: skip
LIMIT = 6
"""Tokens of the longest answer; a sum needs a sign, two digits and the end."""
GRPO = {
    "rewards": {"exact": 1.0}, "group": 16, "prompts_per_step": 32, "max_answer": LIMIT, "concurrency": 512,
    "projector_rate": 0.0,
}  # fmt: skip
ALONE = {"encoder_rate": 0.0, "projector_rate": 0.0}
STAGES = {
    "sft": {"stage": "sft", "data": "solved", "rate": 2e-3, "schedule": "linear"},
    "control": {"stage": "sft", "data": "solved", "rate": 1.5e-4, "schedule": "linear"},
    "grpo": {"stage": "grpo", "data": "unsolved", "rate": 5e-5, "schedule": "linear"},
}


def write_data(folder: Path, solved: int, unsolved: int, tests: int) -> None:
    """Solved sums, sums without answers for GRPO, and sums to test with, all different."""
    seen: set[str] = set()
    for name, count, seed in (("test", tests, 10**7), ("solved", solved, 0), ("unsolved", unsolved, 2 * 10**7)):
        kept: list[dict[str, Any]] = []
        for line in entries(TASK, size=4 * count, seed=seed, options=OPTIONS):
            if (question := question_of(line)) not in seen and len(kept) < count:
                seen.add(question)
                kept.append(line)
        if name == "solved":
            kept = [{"messages": [*k["messages"], {"role": "assistant", "content": k["answer"]}]} for k in kept]
            texts = [m["content"] for k in kept for m in k["messages"]]
            (folder / "tokenizer").mkdir(exist_ok=True)
            train_small_tokenizer(texts, MODEL["vocab_size"]).save(str(folder / "tokenizer" / "tokenizer.json"))
        write_lines(folder / f"{name}.jsonl", kept)


def train(folder: Path, name: str, start: Path | None, steps: int, console: Console) -> tuple[Path, float]:
    """Run one stage -> its checkpoint and the CPU-seconds it took."""
    given = STAGES[name]
    stage = {
        "stage": given["stage"], "data": [{"path": f"{given['data']}.jsonl"}], "steps": steps, "warmup": 10,
        "schedule": given["schedule"], "weight_decay": 0.0, "max_tokens": 4096, "checkpoint_every": 50,
    }  # fmt: skip
    qwen3 = {"tokenizer": str(folder / "tokenizer"), "config": MODEL}
    sft = {"rate": given["rate"], **ALONE}
    grpo = {**GRPO, "rate": given["rate"]}
    plugins = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": qwen3}, "verifiers", {"sft": sft}, {"grpo": grpo}]
    plan = {"name": name, "pipeline": {"plugins": plugins}, "stages": [stage], "threads": 1, "folder": folder}
    recipe = structure(Recipe, plan, name)
    began = time.process_time()
    with Progress(folder / name, console, [25]) as progress:
        model = Pipeline.from_plugins(plugins, weights=start).train(recipe, folder / name, progress=progress)
    return model, time.process_time() - began


def answers(model: Path, lines: Sequence[dict[str, Any]], temperature: float) -> list[bool]:
    """Whether each sum is answered right, as the number alone."""
    pipe = Pipeline.from_pretrained(model)
    reward = pipe.pick("rewards", "exact")
    right = []
    for at in range(0, len(lines), 250):
        part = lines[at : at + 250]
        options = GenerationOptions(max_tokens=LIMIT, temperature=temperature, seed=1)
        for line, answer in zip(part, pipe.generate_batch([x["messages"] for x in part], options), strict=True):
            right.append(reward.score(line, answer.text) == 1.0)
    return right


def wilson(right: Sequence[bool]) -> tuple[float, float, float]:
    """Share, and its 95 % interval."""
    n, p, z = len(right), sum(right) / len(right), 1.96
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact p-value that both are equally good."""
    gained = sum(b < a for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    n = gained + lost
    # computed in logarithms: the terms underflow for large n
    terms = [
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        for k in range(min(gained, lost) + 1)
    ]
    return min(1.0, 2 * sum(terms))


def measure(folder: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train the three models, and test them."""
    if not (folder / "unsolved.jsonl").exists():
        write_data(folder, args.solved, args.unsolved, args.tests)
    before, seconds = train(folder, "sft", None, args.sft_steps, console)
    models, cpu = {"sft": before}, {"sft": round(seconds)}
    for name, steps in (("control", args.control_steps), ("grpo", args.steps)):
        models[name], seconds = train(folder, name, before, steps, console)
        cpu[name] = round(seconds)
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    steps = {"sft": args.sft_steps, "control": args.control_steps, "grpo": args.steps}
    result: dict[str, Any] = {"task": TASK, "options": OPTIONS, "n": len(lines), "steps": steps, "cpu_seconds": cpu}
    result |= {
        "solved": args.solved,
        "unsolved": args.unsolved,
        "grpo": GRPO,
        "rates": {k: v["rate"] for k, v in STAGES.items()},
    }
    for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        right = {name: answers(model, lines, temperature) for name, model in models.items()}
        result[mode] = {
            name: dict(zip(("share", "low", "high"), wilson(r), strict=True)) | {"p": mcnemar(right["sft"], r)}
            for name, r in right.items()
        }
    return result


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description="What GRPO adds to a small model after supervised fine-tuning.")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="folder to keep")
    sizes = {"solved": 800, "unsolved": 2000, "tests": 1000, "sft_steps": 300, "control_steps": 150, "steps": 260}
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = measure(folder.resolve(), args, Console(stderr=True))
    if args.json:
        print(json.dumps(result, indent=2))
        return
    table = Table("pass@1", "supervised", "more of it (control)", "GRPO")
    for mode in ("greedy", "sampled"):
        cells = [f"{x['share']:.1%} ({x['low']:.1%} to {x['high']:.1%})" for x in result[mode].values()]
        table.add_row(mode, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
