"""Stage 2, joint pre-training: every module, a mixture by weight, a growing context, random positions of image rows.

The mixture holds the same sums with and without reasoning, so the model learns to think when it is asked to.

python examples/train_joint.py [FOLDER]      # seconds on one core; a temporary folder without an argument
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from rich.console import Console
from shapes import captions, sums, write_tar, write_text

from andes_sdk import Pipeline

# AndesVL: 2048 tokens of context, then 8192. Here 64 and 256.
RECIPE = """
name = "joint"
threads = 1

[pipeline]
plugins = [
    { aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } },
    { pretraining = { joint_rate = 6e-3, joint_projector_rate = 6e-3, joint_encoder_rate = 3e-3 } },
]

[[stages]]
stage = "joint"
steps = 20
warmup = 5
schedule = "constant"
max_tokens = 64
data = [
    { path = "captions.tar", weight = 2 },
    { path = "sums.jsonl", weight = 1 },
    { path = "reasons.jsonl", weight = 1 },
]

[[stages]]
stage = "joint"
steps = 60
max_tokens = 256
data = [
    { path = "captions.tar", weight = 1 },
    { path = "sums.jsonl", weight = 1 },
    { path = "reasons.jsonl", weight = 1 },
]
"""


def main(folder: Path) -> None:
    write_tar(folder / "captions.tar", captions(12))
    write_text(folder / "sums.jsonl", sums(think=False))
    write_text(folder / "reasons.jsonl", sums(think=True))
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.toml")
    pipe = Pipeline.from_plugins(**recipe.pipeline)
    with Progress(folder / "run", Console(), [20, 20]) as progress:
        pipe.train(recipe, folder / "run", progress=progress)
    answers = [pipe.chat("2+2?", max_tokens=12, think=think) for think in (False, True)]
    print(answers)
    if answers != ["4", "<think>2 twice</think>4"]:
        sys.exit("the mode was not learned")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
