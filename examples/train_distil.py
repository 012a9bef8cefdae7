"""Distillation: a student of half the size learns to say what a trained teacher says.

python examples/train_distil.py [FOLDER]      # a temporary folder without one; under 20 seconds on one core

The teacher learns captions of coloured squares. The student then learns from the teacher's distribution and its last
hidden states, and from no answer of the data.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from rich.console import Console
from shapes import captions, picture, write_lines

from andes_sdk import Pipeline

RECIPE = """
name = "{stage}"
threads = 1

[pipeline]
plugins = [
    {{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny", config = {{ {config} }} }} }},
    {{ {stage} = {{ rate = 6e-3, projector_rate = 6e-3, encoder_rate = 6e-3{options} }} }},
]

[[stages]]
stage = "{stage}"
steps = 60
warmup = 5
schedule = "constant"
max_tokens = 256
data = [{{ path = "captions.jsonl" }}]
"""
SMALLER = "hidden_size = 32, num_hidden_layers = 1, intermediate_size = 64"
OPTIONS = ', teacher = "{folder}/sft/model", ce = 0.0, hidden = 0.1, layers = [[-1, -1]], map_rate = 6e-3'


def main(folder: Path) -> None:
    write_lines(folder / "captions.jsonl", captions(8))
    (folder / "sft.toml").write_text(RECIPE.format(stage="sft", config="", options=""))
    (folder / "distillation.toml").write_text(RECIPE.format(stage="distillation", config=SMALLER, options=OPTIONS))
    trained = {}
    for name in ("sft", "distillation"):
        recipe = load_recipe(folder / f"{name}.toml")
        trained[name] = Pipeline.from_plugins(**recipe.pipeline)
        with Progress(folder / name, Console(), [60]) as progress:
            trained[name].train(recipe, folder / name, progress=progress)
    steps = [json.loads(line) for line in (folder / "distillation" / "metrics.jsonl").read_text().splitlines()]
    for step in steps[::15] + steps[-1:]:
        print(f"step {step['step']:3}: {step['kl']:.3f} nats from the teacher, {step['agreement']:.0%} of tokens agree")
    sizes = [pipe.model.language_model.num_parameters() for pipe in trained.values()]
    print(f"{sizes[0]:,} weights of the teacher's language model, {sizes[1]:,} of the student's")
    square = picture("blue", (100, 100, 600, 600))
    print(f"the student sees {trained['distillation'].chat('caption?', images=[square], max_tokens=12)!r}")
    if steps[-1]["kl"] > 0.2 * steps[0]["kl"]:
        sys.exit("the student did not come near its teacher")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
