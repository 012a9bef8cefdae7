"""Preference training of the first-light model: what it does to preferences, and to the answers.

    python benchmarks/mpo.py --json                            # about six minutes on one core

The model reads handwritten digits well, and turned ones badly: it never saw any by more than ten degrees. Pictures of
the training split are turned by up to `--angle` degrees; the pair builder samples answers to them, and to pictures that
the model knows, and the stage `mpo` learns from the pairs. Held out are the test splits, turned in the same way.

Preference accuracy is the share of held-out pairs, made by the same builder with the model as it was, whose right
answer is the likelier one; `reward_accuracy` compares rewards, that is likelihoods relative to the model at the start.
Task accuracies are those of greedy answers, as in benchmarks/first_light.py. The same training with the SFT part alone
stands beside it: what the chosen answers do without the rejected ones.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from andes_mpo.pairs import PairBuilder, PairOptions
from andes_mpo.stage import answer_logps
from andes_training.feed import packed
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from andes_training.run import StageRun
from PIL import Image
from rich.console import Console

from andes_sdk import Pipeline

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "examples" / "first_light"), str(ROOT / "benchmarks")]
from first_light import score, spread  # noqa: E402
from prepare import DIGIT_QUESTIONS, data_url, digits, easy_vqa_questions  # noqa: E402

Item = tuple[Image.Image, str, str]
RECIPE = """
name = "mpo"
precision = "no"
threads = {threads}
[pipeline]
plugins = []
[[stages]]
stage = "mpo"
steps = {steps}
warmup = 10
max_patches = 2048
max_tokens = 4096
checkpoint_every = 1000
log_every = 20
data = [{{ path = "train.jsonl" }}]
"""


def turned(split: str, angle: float) -> list[Item]:
    """Digits of a split, each turned by its own angle."""
    rng = random.Random(f"{split}/{angle}")
    # turned at eight times their size, so that the grid of 8x8 pixels does not decide what is left of them
    return [
        (image.resize((64, 64), Image.Resampling.NEAREST).rotate(rng.uniform(-angle, angle), Image.Resampling.BILINEAR),
         DIGIT_QUESTIONS[0], answer)
        for image, answer in digits(split)
    ]  # fmt: skip


def known(split: str, count: int) -> list[Item]:
    """Pictures that the model reads well: plain digits, and easy-vqa."""
    plain = [(image, DIGIT_QUESTIONS[0], answer) for image, answer in digits(split)]
    asked = [(Image.open(path), *random.Random(path.name).choice(p)) for path, p in easy_vqa_questions(split)]
    return spread(plain, count) + spread(asked, count)


def write_prompts(path: Path, items: Sequence[Item]) -> Path:
    """Prompts with their truth, pictures inside."""
    lines = []
    for image, question, answer in items:
        content = [
            {"type": "image_url", "image_url": {"url": data_url(image)}},
            {"type": "text", "text": question},
        ]
        lines.append(json.dumps({"prompt": [{"role": "user", "content": content}], "answer": answer}) + "\n")
    path.write_text("".join(lines))
    return path


@torch.no_grad()
def preferences(pipeline: Pipeline, recipe: Any, folder: Path) -> torch.Tensor:
    """(pairs, 2) log-probabilities of right and wrong answers of `folder/held_out.jsonl`, in its order."""
    from andes_training.data.samples import stage_samples
    from andes_training.recipe import DataRecipe

    samples = stage_samples([DataRecipe(path=Path("held_out.jsonl"))], folder)
    stage = pipeline.pick("training_stages", "mpo")
    run = StageRun(pipeline=pipeline, recipe=recipe.stages[0], stage=stage, samples=samples, out=folder)
    found = torch.zeros(len(samples), 2)
    done = 0
    batches = packed(run)
    while done < len(samples):
        _, batch = next(batches)
        found[batch.extras["sample"]] = answer_logps(pipeline.model, batch)[0]
        done += batch.samples
    return found


def tasks(pipeline: Pipeline, angle: float, limit: int) -> dict[str, float]:
    """Accuracy of greedy answers on data that no model here has seen."""
    vqa = [(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs]
    plain = [(image, DIGIT_QUESTIONS[0], answer) for image, answer in digits("test")]
    sets = {"turned_digits": turned("test", angle), "digits": plain, "easy_vqa": spread(vqa, limit)}
    return {name: round(score(pipeline, items, name)[0], 4) for name, items in sets.items()}


def measure(folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Build pairs, train, and score before and after."""
    console, start = Console(stderr=True), time.perf_counter()
    plugins = ["verifiers", {"mpo": {"rate": a.rate}}]
    before = Pipeline.from_pretrained(a.model, plugins=plugins, dtype="float32")
    options = PairOptions(reward="exact", k=a.k, pairs=a.pairs, temperature=a.temperature, max_tokens=8, batch=32)
    sources = {
        "train": spread(turned("train", a.angle), a.prompts) + known("train", a.prompts // 4),
        "held_out": turned("test", a.angle),
    }
    counts = {}
    for name, items in sources.items():
        prompts = write_prompts(folder / f"prompts_{name}.jsonl", items)
        counts[name] = PairBuilder(before, prompts, folder / f"{name}.jsonl", options).run()
        console.print(name, counts[name])
    built = time.perf_counter()
    (folder / "recipe.toml").write_text(RECIPE.format(steps=a.steps, threads=torch.get_num_threads()))
    recipe = load_recipe(folder / "recipe.toml")
    old, tasks_before = preferences(before, recipe, folder), tasks(before, a.angle, a.limit)
    kinds = {"mpo": {}, "sft_on_chosen": {"dpo": 0.0, "bco": 0.0}}
    after: dict[str, Any] = {}
    for name, weights in kinds.items():
        learner = Pipeline.from_pretrained(
            a.model, plugins=["verifiers", {"mpo": {"rate": a.rate, **weights}}], dtype="float32"
        )
        trained = time.perf_counter()
        with Progress(folder / name, console, [20]) as progress:
            model = learner.train(recipe, folder / name, progress=progress)
        seconds = time.perf_counter() - trained
        pipeline = Pipeline.from_pretrained(model, dtype="float32")
        new = preferences(pipeline, recipe, folder)
        after[name] = {
            "preference_accuracy": share(new),
            "reward_accuracy": share(new - old),
            "task_accuracy": tasks(pipeline, a.angle, a.limit),
            "training_seconds": round(seconds, 1),
        }
    return {
        "model": "first_light",
        "parameters": before.model.parameter_count(),
        "pairs": counts,
        "held_out_pairs": len(old),
        "before": {"preference_accuracy": share(old), "task_accuracy": tasks_before},
        **after,
        "steps": a.steps,
        "rate": a.rate,
        "angle": a.angle,
        "seconds": {
            "pairs": round(built - start, 1),
            "all": round(time.perf_counter() - start, 1),
        },
    }


def share(logps: torch.Tensor) -> float:
    """Share of pairs whose first number is the larger."""
    return round(float((logps[:, 0] > logps[:, 1]).float().mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "first_light" / "model")
    parser.add_argument("--angle", type=float, default=40.0, help="degrees by which digits are turned, at most")
    parser.add_argument("--prompts", type=int, default=500, help="turned digits to learn from")
    parser.add_argument("--k", type=int, default=6, help="answers per prompt")
    parser.add_argument("--temperature", type=float, default=2.0, help="of these answers")
    parser.add_argument("--pairs", type=int, default=2, help="pairs per prompt")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5e-5)
    parser.add_argument("--limit", type=int, default=500, help="questions of easy-vqa for the score")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments)
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
