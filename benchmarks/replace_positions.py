"""Random position replacement on the first-light model: what it does at the trained resolution, and at a larger one.

    python benchmarks/replace_positions.py --json              # some minutes on one core

The model goes on through the stage `joint` on easy-vqa at 112 pixels, once with and once without replacement, from the
same weights and in the same order. Both then answer questions of the test split at 112 pixels (16 image rows) and at
the larger size, where a picture takes more positions than training ever showed. Pictures are enlarged, no detail is
added.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from andes_training.recipe import load_recipe

from andes_sdk import Pipeline

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "first_light"
sys.path[:0] = [str(FOLDER), str(ROOT / "benchmarks")]
from first_light import score, spread  # noqa: E402
from prepare import easy_vqa_questions, write  # noqa: E402

RECIPE = """
name = "replace"
threads = 1
seed = {seed}
[pipeline]
plugins = []
[[stages]]
stage = "joint"
steps = {steps}
warmup = 5
floor = 0.1
max_patches = 1024
image = {{ min_size = 112, max_size = 112 }}
rates = {{ vision_encoder = 1e-4, mlp = 1e-4, language_model = 1e-4 }}
checkpoint_every = 100000
data = [{{ path = "train.jsonl", flip = true, questions = 4 }}]
"""


def trained(folder: Path, share: float, steps: int, seed: int) -> Path:
    """The first-light model after some steps of `joint` -> its folder."""
    (folder / "recipe.toml").write_text(RECIPE.format(steps=steps, seed=seed), encoding="utf-8")
    recipe = load_recipe(folder / "recipe.toml")
    plugin = {"pretraining": {"replace_positions": share}}
    pipe = Pipeline.from_pretrained(FOLDER / "model", plugins=[plugin], dtype="float32")
    return pipe.train(recipe, folder / f"share-{share}")


def accuracy(model: Path, side: int, limit: int) -> float:
    """Share of right answers to questions about pictures of this side, in pixels."""
    questions = [(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs]
    plan = Pipeline.from_pretrained(model).plan
    plugins = [{p.name: dict(p.options)} for p in plan.plugins]
    pipe = Pipeline.from_plugins(plugins, weights=model, image={"min_size": side, "max_size": side})
    return round(score(pipe, spread(questions, limit), f"{side} pixels")[0], 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--limit", type=int, default=400, help="questions; 0 for all")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=168, help="the larger size, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, object] = {k: getattr(arguments, k) for k in ("steps", "limit", "share", "side", "seed")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
            for path, pairs in easy_vqa_questions("train"):
                write(file, str(path), pairs)
        for share in (0.0, arguments.share):
            model = trained(folder, share, arguments.steps, arguments.seed)
            result[f"share {share}"] = {side: accuracy(model, side, arguments.limit) for side in (112, arguments.side)}
    result["seconds"] = round(time.perf_counter() - start, 1)
    print(json.dumps(result) if arguments.json else "\n".join(f"{k:12} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
