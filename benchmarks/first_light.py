"""Score the first-light model on data it has never seen, beside what can be had without looking.

    python benchmarks/first_light.py --json                    # the whole test split and the 500 held-out digits
    python benchmarks/first_light.py --limit 400               # every n-th question, for a quick look
    python benchmarks/first_light.py --backend numba --format w8 --limit 1000 --json    # packed, against torch

With another backend than torch the model is packed first, and `agreement` is the share of questions to which both
backends give the same answer, right or wrong.

An answer counts if the generated text equals the truth. Baselines, on the same questions: the most frequent answer of
the training split, and the most frequent answer for each question text (what ignoring the picture can reach).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from rich.console import Console
from rich.progress import track

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "first_light"))
from prepare import DIGIT_QUESTIONS, digits, easy_vqa_questions  # noqa: E402

Item = tuple[Any, str, str]
BATCH = 32


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` items at even distances; all of them for 0."""
    if not limit or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def answers_of(pipeline: Pipeline, items: Sequence[Item], label: str) -> list[str]:
    """The answer to each question."""
    found = []
    options = GenerationOptions(max_tokens=8)
    for start in track(range(0, len(items), BATCH), label, console=Console(stderr=True)):
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": q}]}]
            for i, q, _ in items[start : start + BATCH]
        ]
        found += [answer.text for answer in pipeline.generate_batch(conversations, options)]
    return found


def score(pipeline: Pipeline, items: Sequence[Item], label: str) -> tuple[float, dict[str, float]]:
    """Share of exact answers, in all and per kind of question."""
    return shares(answers_of(pipeline, items, label), items)


def shares(answers: Sequence[str], items: Sequence[Item]) -> tuple[float, dict[str, float]]:
    """Answers -> share of right ones, in all and per kind of question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer, (_, question, truth) in zip(answers, items, strict=True):
        right[kind_of(question)].append(answer == truth)
    every = [r for found in right.values() for r in found]
    return sum(every) / len(every), {k: sum(v) / len(v) for k, v in sorted(right.items())}


def compare(pipeline: Pipeline, backend: str, form: str, questions: Sequence[Item]) -> dict[str, Any]:
    """Pack a pipeline's model, run it on another backend, and count the answers that both give."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = default_recipe(pipeline.model, form, vision="w8")
        path = pack_model(pipeline.model, recipe, Path(folder) / "model.andes", plan=pipeline.plan).path
        packed = Pipeline.from_pretrained(path, backend=backend)
        ours, theirs = (answers_of(p, questions, p.plan.backend) for p in (packed, pipeline))
    return {
        "backend": backend,
        "format": form,
        "questions": len(questions),
        "agreement": round(sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(questions), 4),
        "easy_vqa": round(shares(ours, questions)[0], 4),
        "easy_vqa_torch": round(shares(theirs, questions)[0], 4),
        "facts": dict(packed.compiled.facts()),
    }


def kind_of(question: str) -> str:
    """'colour', 'shape', 'yes/no' or 'digit'."""
    if question in DIGIT_QUESTIONS:
        return "digit"
    if question.startswith("what"):
        return "colour" if "color" in question else "shape"
    return "yes/no"


def blind(items: Sequence[Item]) -> tuple[float, float]:
    """Accuracy of the majority answer, and of the majority answer per question text, both from the training split."""
    answers: Counter[str] = Counter()
    per_question: dict[str, Counter[str]] = defaultdict(Counter)
    for _, pairs in easy_vqa_questions("train"):
        for question, answer in pairs:
            answers[answer] += 1
            per_question[question][answer] += 1
    ((majority, _),) = answers.most_common(1)
    best = {q: c.most_common(1)[0][0] for q, c in per_question.items()}
    n = len(items)
    return sum(t == majority for _, _, t in items) / n, sum(best.get(q, majority) == t for _, q, t in items) / n


def evaluate(pipeline: Pipeline, questions: Sequence[Item], limit: int) -> dict[str, Any]:
    """Accuracy on both data sets, beside the baselines."""
    held_out = spread([(image, DIGIT_QUESTIONS[0], answer) for image, answer in digits("test")], limit)
    vqa, kinds = score(pipeline, questions, "easy-vqa")
    digit, _ = score(pipeline, held_out, "digits")
    majority, per_question = blind(questions)
    return {
        "easy_vqa": round(vqa, 4),
        "easy_vqa_majority": round(majority, 4),
        "easy_vqa_blind": round(per_question, 4),
        "digits": round(digit, 4),
        "parameters": pipeline.model.parameter_count(),
        "kinds": {k: round(v, 4) for k, v in kinds.items()},
        "questions": len(questions),
        "digits_held_out": len(held_out),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "first_light" / "model")
    parser.add_argument("--limit", type=int, default=0, help="questions of each data set; 0 for all")
    parser.add_argument("--backend", default="torch", help="run the packed model on this one, and compare with torch")
    parser.add_argument("--format", default="w8", help="of the packed language model")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    pipeline = Pipeline.from_pretrained(arguments.model, dtype="float32")
    questions = [(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs]
    questions = spread(questions, arguments.limit)
    start = time.perf_counter()
    if arguments.backend == "torch":
        result = evaluate(pipeline, questions, arguments.limit)
    else:
        result = compare(pipeline, arguments.backend, arguments.format, questions)
    result["seconds"] = round(time.perf_counter() - start, 1)
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:18} {value}")


if __name__ == "__main__":
    main()
