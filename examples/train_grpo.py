"""Learn from rewards: a tiny model that half knows some colours tries each several times, and keeps what was right.

python examples/train_grpo.py [FOLDER]      # a temporary folder without one; some ten seconds on one core
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from andes_grpo.curriculum import Measurement, pass_rates
from andes_training.data.samples import stage_samples
from andes_training.progress import Progress
from andes_training.recipe import DataRecipe, load_recipe
from PIL import Image
from rich.console import Console

from andes_sdk import Pipeline

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
RECIPE = """
name = "colours"
threads = 1

[pipeline]
plugins = [
    { aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "verifiers", { sft = { rate = 1e-2 } },
    { grpo = { rate = 1e-3, encoder_rate = 1e-3, group = 16, prompts_per_step = 6, max_answer = 6 } },
]

[[stages]]
stage = "sft"
steps = 45
max_patches = 96
data = [{ path = "answers.jsonl" }]

[[stages]]
stage = "grpo"
steps = 30
schedule = "constant"
data = [{ path = "prompts.jsonl" }]
"""


def write_data(folder: Path) -> None:
    """The same questions twice: with answers to imitate, and with truths that only the reward sees."""
    answers, prompts = [], []
    for colour in COLOURS:
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        content = [
            {"type": "image_url", "image_url": {"url": f"{colour}.png"}},
            {"type": "text", "text": "which colour?"},
        ]
        question = {"role": "user", "content": content}
        answers.append({"messages": [question, {"role": "assistant", "content": colour}]})
        prompts.append({"messages": [question], "answer": colour})
    for name, lines in (("answers", answers * 2), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(RECIPE)


def pass_rate(pipe: Pipeline, folder: Path) -> float:
    """Share of sampled answers that are right, over all prompts."""
    samples = stage_samples([DataRecipe(path=Path("prompts.jsonl"))], folder)
    rates = [rate for _, rate in pass_rates(pipe, samples, Measurement(reward="exact", samples=32, max_answer=6))]
    return sum(rates) / len(rates)


def main(folder: Path) -> None:
    """Supervised steps, a measurement, steps with a reward, and the measurement again."""
    write_data(folder)
    whole = load_recipe(folder / "recipe.toml")
    rates, weights = [], None
    for stage in ("sft", "grpo"):
        # one recipe would do; two runs show what each stage gives
        recipe = load_recipe(folder / "recipe.toml")
        recipe.stages[:] = [s for s in whole.stages if s.stage == stage]
        pipe = Pipeline.from_plugins(**recipe.pipeline, weights=weights)
        with Progress(folder / stage, Console(), [10]) as progress:
            weights = pipe.train(recipe, folder / stage, progress=progress)
        rates.append(pass_rate(pipe, folder))
    print(f"right answers: {rates[0]:.0%} after sft, {rates[1]:.0%} after grpo")
    if rates[1] < rates[0] + 0.1:
        sys.exit("nothing learned")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
