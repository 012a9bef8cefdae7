"""Preference training: a model that answers right half of the time learns to prefer its right answers.

python examples/train_mpo.py [FOLDER]      # a temporary folder without one; under 15 seconds on one core

A tiny model is taught two answers to each picture. `PairBuilder` samples its answers, a verifier tells right from
wrong, and the stage `mpo` learns from the pairs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from andes_mpo.pairs import PairBuilder, PairOptions
from andes_training.recipe import load_recipe
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions

TRUTH = {"red": "blue", "green": "white", "black": "yellow"}
"""Picture -> the other answer that the model is taught."""
RECIPE = """
name = "{stage}"
threads = 1

[pipeline]
plugins = [
    {{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }},
    {{ {stage} = {{ rate = {rate} }} }},
]

[[stages]]
stage = "{stage}"
steps = {steps}
warmup = 5
data = [{{ path = "{data}" }}]
"""


def question(folder: Path, colour: str) -> list[dict[str, object]]:
    """One user message about one picture."""
    image = {"type": "image", "image": str(folder / f"{colour}.png")}
    return [{"role": "user", "content": [image, {"type": "text", "text": "which colour?"}]}]


def write_data(folder: Path) -> None:
    """Pictures, lines that teach both answers, prompts with the truth, and two recipes."""
    lines, prompts = [], []
    for colour, other in TRUTH.items():
        Image.new("RGB", (28, 28), colour).save(folder / f"{colour}.png")
        prompts.append({"prompt": question(folder, colour), "answer": colour})
        for answer in (colour, other):
            lines.append({"messages": [*question(folder, colour), {"role": "assistant", "content": answer}]})
    for name, entries in (("taught", lines), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    (folder / "sft.toml").write_text(RECIPE.format(stage="sft", rate="1e-2", steps=60, data="taught.jsonl"))
    (folder / "mpo.toml").write_text(RECIPE.format(stage="mpo", rate="1e-3", steps=30, data="pairs.jsonl"))


def right(pipeline: Pipeline, folder: Path, samples: int = 20) -> float:
    """Share of right answers among sampled ones."""
    questions, found = [question(folder, colour) for colour in TRUTH], []
    for seed in range(samples):
        answers = pipeline.generate_batch(questions, GenerationOptions(max_tokens=8, temperature=1.0, seed=seed))
        found += [answer.text == colour for answer, colour in zip(answers, TRUTH, strict=True)]
    return sum(found) / len(found)


def main(folder: Path) -> None:
    write_data(folder)
    recipe = load_recipe(folder / "sft.toml")
    taught = Pipeline.from_plugins(**recipe.pipeline).train(recipe, folder / "sft")

    pipeline = Pipeline.from_pretrained(taught, plugins=["verifiers", "mpo"])
    before = right(pipeline, folder)
    options = PairOptions(reward="exact", k=8, pairs=4, max_tokens=8)
    counts = PairBuilder(pipeline, folder / "prompts.jsonl", folder / "pairs.jsonl", options).run()
    print("prompts by what became of them:", counts)

    recipe = load_recipe(folder / "mpo.toml")
    pipeline = Pipeline.from_pretrained(taught, plugins=[{"mpo": {"rate": 1e-3}}])
    after = right(Pipeline.from_pretrained(pipeline.train(recipe, folder / "mpo")), folder)
    print(f"right answers at temperature 1: {before:.0%} before, {after:.0%} after")
    if after < before + 0.2:
        sys.exit("nothing was learned")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
