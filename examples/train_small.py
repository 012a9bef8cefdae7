"""Train a tiny model to name colours: data, recipe, two stages, a checkpoint, an answer. Under a minute on one core.

python examples/train_small.py [FOLDER]      # a temporary folder without one
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from PIL import Image
from rich.console import Console

from andes_sdk import Pipeline

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
RECIPE = """
name = "colours"
threads = 1

[pipeline]
plugins = [
    { aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } },
    { pretraining = { projector_rate = 1e-2, encoder_rate = 1e-2 } }, { sft = { rate = 1e-2 } },
]

[[stages]]
stage = "alignment"
steps = 20
max_patches = 96
data = [{ path = "colours.jsonl" }]

[[stages]]
stage = "sft"
steps = 80
warmup = 5
max_patches = 96
data = [{ path = "colours.jsonl", flip = true }]
"""


def write_data(folder: Path) -> None:
    """Pictures, and a JSON Lines file of OpenAI-style messages that refers to them."""
    lines = []
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        content = [
            {"type": "image_url", "image_url": {"url": f"{colour}.png"}},
            {"type": "text", "text": "which colour?"},
        ]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": colour}]
        lines.append(json.dumps({"messages": messages}))
    (folder / "colours.jsonl").write_text("\n".join(lines * 2) + "\n")
    (folder / "recipe.toml").write_text(RECIPE)


def main(folder: Path) -> None:
    write_data(folder)
    recipe = load_recipe(folder / "recipe.toml")
    with Progress(folder / "run", Console(), [20, 20]) as progress:
        model = Pipeline.from_plugins(**recipe.pipeline).train(recipe, folder / "run", progress=progress)
    trained = Pipeline.from_pretrained(model)
    answers = {c: trained.chat("which colour?", images=[folder / f"{c}.png"], max_tokens=12) for c in COLOURS}
    print(answers)
    if wrong := [colour for colour, answer in answers.items() if colour != answer]:
        sys.exit(f"not learned: {', '.join(wrong)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
