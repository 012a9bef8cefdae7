"""Stage 1, alignment: the projector learns from captions, first on small pictures and then on larger ones.

python examples/train_alignment.py [FOLDER]      # seconds on one core; a temporary folder without an argument
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from rich.console import Console
from shapes import captions, write_lines

from andes_sdk import Pipeline

# AndesVL: max_size 896 and 4096 patches, then 1792 and 16384. Here a sixteenth of the side.
RECIPE = """
name = "alignment"
threads = 1

[pipeline]
plugins = [
    { aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } },
    { pretraining = { projector_rate = 1e-2, encoder_rate = 1e-2 } },
]

[[stages]]
stage = "alignment"
steps = 40
warmup = 4
image = { max_size = 56 }
max_patches = 128
data = [{ path = "captions.jsonl" }]

[[stages]]
stage = "alignment"
steps = 10
image = { min_size = 112, max_size = 112 }
max_patches = 512
data = [{ path = "captions.jsonl" }]
"""


def main(folder: Path) -> None:
    write_lines(folder / "captions.jsonl", captions(16))
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.toml")
    pipe = Pipeline.from_plugins(**recipe.pipeline)
    before = {name: p.clone() for name, p in pipe.model.named_parameters()}
    with Progress(folder / "run", Console(), [20, 10]) as progress:
        pipe.train(recipe, folder / "run", progress=progress)
        first, last = progress.losses[0], progress.losses[-1]
    moved = {name.partition(".")[0] for name, p in pipe.model.named_parameters() if not torch.equal(p, before[name])}
    print(f"moved: {', '.join(sorted(moved))}; second stage {first:.3f} -> {last:.3f}")
    if moved != {"mlp", "vision_encoder"}:
        sys.exit("alignment must leave the language model as it was")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
