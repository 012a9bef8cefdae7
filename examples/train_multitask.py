"""Stage 3, multi-task pre-training: captions and grounding with budgets, larger packs; bad samples are skipped.

python examples/train_multitask.py [FOLDER]      # seconds on one core; a temporary folder without an argument
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from andes_training.data.boxes import find_boxes
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from rich.console import Console
from shapes import boxes, captions, picture, write_lines, write_parquet

from andes_sdk import Pipeline

# AndesVL: packs of 4096 patches and 8192 tokens, then of 16384 and 32768. Here 128 and 256, then 512 and 1024.
RECIPE = """
name = "multitask"
threads = 1

[pipeline]
plugins = [
    { aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } },
    { pretraining = { multitask_rate = 6e-3, multitask_projector_rate = 6e-3, multitask_encoder_rate = 6e-3 } },
]

[[stages]]
stage = "multitask"
steps = 40
warmup = 5
schedule = "constant"
max_patches = 128
max_tokens = 256
data = [{ path = "boxes.parquet", samples = 16 }, { path = "captions.jsonl", tokens = 200, on_error = "skip" }]

[[stages]]
stage = "multitask"
steps = 50
max_patches = 512
max_tokens = 1024
data = [{ path = "boxes.parquet", samples = 24 }, { path = "captions.jsonl", tokens = 200, on_error = "skip" }]
"""


def main(folder: Path) -> None:
    write_parquet(folder / "boxes.parquet", boxes(40))
    write_lines(folder / "captions.jsonl", captions(8))
    with open(folder / "captions.jsonl", "a", encoding="utf-8") as file:
        file.write('{"messages": "broken"}\n')
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.toml")
    pipe = Pipeline.from_plugins(**recipe.pipeline)
    with Progress(folder / "run", Console(), [15, 15]) as progress:
        pipe.train(recipe, folder / "run", progress=progress)
    bad = [json.loads(line) for line in (folder / "run" / "bad_samples.jsonl").read_text().splitlines()]
    print(f"skipped: {sorted({(Path(row['where']).name, row['reason']) for row in bad})}")
    wanted = [(0, 0, 500, 1000), (500, 0, 1000, 1000)]
    answers = [pipe.chat("where?", images=[picture("blue", box)], max_tokens=40) for box in wanted]
    print("\n".join(answers))
    if [find_boxes(answer) for answer in answers] != [[box] for box in wanted]:
        sys.exit("the boxes were not learned")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
