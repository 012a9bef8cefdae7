"""The whole chain in one run: alignment, joint, multitask, sft and mpo, each on what the one before it left.

python examples/train_chain.py [FOLDER]      # a temporary folder without one; a minute or two on one core

Pictures are easy-vqa's and scikit-learn's handwritten digits. The same command with the same FOLDER goes on with a
run that was stopped. Learning from rewards needs answers to be sampled, and is `examples/train_grpo.py`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean

from andes_training.progress import METRICS, Progress
from andes_training.recipe import load_recipe
from first_light.prepare import DIGIT_QUESTIONS, conversation, data_url, digits, easy_vqa_questions, thinned
from rich.console import Console

from andes_sdk import Pipeline

RECIPE = Path(__file__).parent / "chain" / "recipe.toml"
PICTURES, TAUGHT, PREFERRED, ASKED = 400, 1000, 297, 200
"""easy-vqa's pictures; digits of the supervised stages, of the pairs, and held out."""
ENDS = 10
"""Steps at either end of a stage whose losses are averaged."""
QUESTION = DIGIT_QUESTIONS[0]


def write_data(folder: Path) -> None:
    """Captions, questions, digits, and pairs by rule: the right digit against another one."""
    folder.mkdir(parents=True, exist_ok=True)
    captions, questions = [], []
    for path, pairs in islice(easy_vqa_questions("train"), PICTURES):
        url = str(path)
        asked = thinned(pairs, random.Random(path.name))
        shape = next((answer for question, answer in asked if question.startswith("what shape")), "shape")
        colour = next((answer for question, answer in asked if " color " in question), "coloured")
        captions.append({"messages": conversation(url, "describe the picture.", f"a {colour} {shape}")})
        questions.append({"conversations": [conversation(url, *pair) for pair in asked]})
    rng = random.Random(0)
    taught, pairs_of_answers = [], []
    for number, (image, right) in enumerate(digits("train")):
        question, answer = conversation(data_url(image), QUESTION, right)
        wrong = rng.choice([d for d in "0123456789" if d != right])
        if number < TAUGHT:
            taught.append({"messages": [question, answer]})
        else:
            pairs_of_answers.append({"prompt": [question], "chosen": right, "rejected": wrong})
    write(folder / "captions.jsonl", captions)
    write(folder / "questions.jsonl", questions)
    write(folder / "digits.jsonl", taught)
    write(folder / "pairs.jsonl", pairs_of_answers[:PREFERRED])
    shutil.copy(RECIPE, folder / "recipe.toml")


def write(path: Path, entries: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def stage_losses(run: Path, ends: int = ENDS) -> dict[str, tuple[float, float]]:
    """Stage -> mean losses of its first and last steps, from a run's metrics."""
    steps = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    found = {}
    for stage, rows in groupby(steps, key=lambda step: step["stage"]):
        losses = [row["loss"] for row in rows]
        found[stage] = fmean(losses[:ends]), fmean(losses[-ends:])
    return found


def right(pipe: Pipeline) -> float:
    """Share of held-out digits that are read rightly."""
    asked = list(islice(digits("test"), ASKED))
    return fmean(pipe.chat(QUESTION, images=[image], max_tokens=3) == answer for image, answer in asked)


def main(folder: Path) -> None:
    write_data(folder)
    recipe = load_recipe(folder / "recipe.toml")
    with Progress(folder / "run", Console(), [stage.steps for stage in recipe.stages]) as progress:
        model = Pipeline.from_plugins(**recipe.pipeline).train(recipe, folder / "run", progress=progress)
    losses = stage_losses(folder / "run")
    for stage, (first, last) in losses.items():
        print(f"{stage:>10}: loss {first:.3f} -> {last:.3f} (means of the first and last {ENDS} steps)")
    print(f"held-out digits read rightly: {right(Pipeline.from_pretrained(model)):.0%}")
    if flat := [stage for stage, (first, last) in losses.items() if last >= first]:
        sys.exit(f"no loss fell in {', '.join(flat)}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
