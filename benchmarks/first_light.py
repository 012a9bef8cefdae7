"""Score the first-light model on data it has never seen, beside what can be had without looking.

    python benchmarks/first_light.py --json                    # the whole test split and the 500 held-out digits
    python benchmarks/first_light.py --limit 400               # every n-th question, for a quick look

An answer counts if the generated text equals the truth. Baselines, on the same questions: the most frequent answer of
the training split, and the most frequent answer for each question text (what ignoring the picture can reach).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def score(pipeline: Pipeline, items: Sequence[Item], label: str) -> tuple[float, dict[str, float]]:
    """Share of exact answers, in all and per kind of question."""
    right: dict[str, list[bool]] = defaultdict(list)
    options = GenerationOptions(max_tokens=8)
    for start in track(range(0, len(items), BATCH), label, console=Console(stderr=True)):
        part = items[start : start + BATCH]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": q}]}]
            for i, q, _ in part
        ]
        for answer, (_, question, truth) in zip(pipeline.generate_batch(conversations, options), part, strict=True):
            right[kind_of(question)].append(answer.text == truth)
    every = [r for found in right.values() for r in found]
    return sum(every) / len(every), {k: sum(v) / len(v) for k, v in sorted(right.items())}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "first_light" / "model")
    parser.add_argument("--limit", type=int, default=0, help="questions of each data set; 0 for all")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args()
    pipeline = Pipeline.from_pretrained(arguments.model, dtype="float32")
    questions = [(path, q, a) for path, pairs in easy_vqa_questions("test") for q, a in pairs]
    held_out = [(image, DIGIT_QUESTIONS[0], answer) for image, answer in digits("test")]
    questions, held_out = spread(questions, arguments.limit), spread(held_out, arguments.limit)
    start = time.perf_counter()
    vqa, kinds = score(pipeline, questions, "easy-vqa")
    digit, _ = score(pipeline, held_out, "digits")
    majority, per_question = blind(questions)
    result = {
        "easy_vqa": round(vqa, 4),
        "easy_vqa_majority": round(majority, 4),
        "easy_vqa_blind": round(per_question, 4),
        "digits": round(digit, 4),
        "parameters": pipeline.model.parameter_count(),
        "kinds": {k: round(v, 4) for k, v in kinds.items()},
        "questions": len(questions),
        "digits_held_out": len(held_out),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:18} {value}")


if __name__ == "__main__":
    main()
