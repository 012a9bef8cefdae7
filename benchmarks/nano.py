"""Score a model of andes-nano on data that it has never seen, beside what can be had without looking.

    python benchmarks/nano.py --json                         # the shipped model
    python benchmarks/nano.py runs/nano/5-sft/model --parts elements line --limit 100
    python benchmarks/nano.py runs/nano/5-sft/model --name 5-sft --out docs/results/nano.json

Words of test pages are in no training page, nor are test combinations of shape and colour; screens are those of
applications that training never saw. Each figure has its number of questions and a 95 % interval (Wilson's; a bootstrap
over pictures for error rates). Baselines answer the same questions: the most frequent answer of the training data, the
most frequent one for the same question text, and for places the centre of the picture, a box drawn from the training
data, and the largest element. `blind` shows noise instead of each picture. `examples/nano/held_out.py` chose the
questions.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from andes_evaluation.figures import wilson
from andes_evaluation.rules.places import hits, overlap, said_place
from andes_evaluation.rules.text import edit_distance, relaxed
from attrs import frozen
from PIL import Image
from rich.console import Console
from rich.progress import track

from andes_sdk import Pipeline
from andes_sdk.files import write_atomically
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples" / "nano"))
from held_out import MARK, OUT, PARTS, SCREENS, kind_of, pairs_of, plain, rows_of  # noqa: E402

BATCH = 16


@frozen
class Item:
    """A question.

    Attributes:
        kind: what is scored and how: place, name, yes_no, error, number, text.
        images: paths; `others` are the boxes of the picture's other elements, in fractions.
    """

    part: str
    kind: str
    images: tuple[Path, ...]
    question: str
    truth: str
    think: bool | None = None
    others: tuple[tuple[float, ...], ...] = ()


def read(path: Path, part: str) -> list[Item]:
    """The questions of a data file."""
    items = []
    for row in rows_of(path):
        images = tuple(path.parent / name for name in row.get("images", ()))
        pairs = pairs_of(row)
        boxes = {box for pair in pairs for t in pair if MARK in t and (box := said_place(t)) is not None}
        for question, truth in pairs:
            kind = kind_of(part, question, truth)
            items.append(Item(part, kind, images, question, truth, row.get("think"), tuple(sorted(boxes))))
    return items


def spread(items: Sequence[Item], limit: int) -> list[Item]:
    """`limit` items, drawn by chance in the same way each time; all of them for 0."""
    # even distances would fall in with how questions take turns: every eighth of the shapes' is answered "yes"
    return random.Random(0).sample(items, limit) if 0 < limit < len(items) else list(items)


def noise(path: Path) -> Image.Image:
    """Noise of a picture's size."""
    with Image.open(path) as image:
        size = (image.height, image.width, 3)
    seed = int.from_bytes(path.name.encode()[:8], "big")
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


def answers_of(
    pipe: Pipeline,
    items: Sequence[Item],
    label: str,
    *,
    blind: bool = False,
    adapter: str | None = None,
    most: int = 160,
) -> list[str]:
    """The answer to each question, greedily, by the pipeline's adapter of that name."""
    found: list[str] = []
    for start in track(range(0, len(items), BATCH), label, console=Console(stderr=True)):
        some = items[start : start + BATCH]
        talks = []
        for item in some:
            pictures = [{"type": "image", "image": noise(p) if blind else str(p)} for p in item.images]
            talks.append([{"role": "user", "content": [*pictures, {"type": "text", "text": item.question}]}])
        thinking = bool(some[0].think)
        options = GenerationOptions(max_tokens=most, temperature=0.0, think=thinking, adapter=adapter)
        found += [answer.text.rpartition("</think>")[2] for answer in pipe.generate_batch(talks, options)]
    return found


def right(item: Item, answer: str) -> float:
    """1.0 or 0.0; for `error` the share of characters that are wrong, at most 1."""
    answer = answer.strip()
    if item.kind == "place":
        place, truth = said_place(answer), said_place(item.truth)
        return float(place is not None and truth is not None and hits(truth, place))
    if item.kind == "error":
        return min(1.0, edit_distance(answer, item.truth) / max(1, len(item.truth)))
    if item.kind == "number":
        return relaxed(answer, item.truth)
    if item.kind == "yes_no":
        return float(answer.lower().rstrip(".") == item.truth.lower().rstrip("."))
    return float(answer == item.truth)


def figure(items: Sequence[Item], answers: Sequence[str]) -> dict[str, Any]:
    """Mean, number and 95 % interval; for places the mean overlap too."""
    values = [right(item, answer) for item, answer in zip(items, answers, strict=True)]
    if not values:
        return {"value": None, "n": 0}
    if items[0].kind == "error":
        groups: dict[Path, list[float]] = {}
        for item, value in zip(items, values, strict=True):
            groups.setdefault(item.images[0], []).append(value)
        means, rng = np.array([np.mean(g) for g in groups.values()]), np.random.default_rng(0)
        drawn = rng.choice(means, (2000, len(means))).mean(1)
        low, high = np.percentile(drawn, (2.5, 97.5))
        return {
            "value": round(float(means.mean()), 4),
            "n": len(values),
            "ci": [round(float(low), 4), round(float(high), 4)],
        }
    interval = wilson(sum(values), len(values))
    made = {
        "value": round(interval.value, 4),
        "n": len(values),
        "ci": [round(interval.low, 4), round(interval.high, 4)],
    }
    if items[0].kind == "place":
        truths = [(said_place(i.truth), said_place(a)) for i, a in zip(items, answers, strict=True)]
        made["iou"] = round(float(np.mean([overlap(t, p) if t and p else 0.0 for t, p in truths])), 4)
    return made


def baselines(items: Sequence[Item], prior: dict[str, Any]) -> dict[str, float]:
    """What answers without looking reach: each baseline's mean."""
    rng = random.Random(0)
    if items[0].kind == "place":
        centre = f"{MARK}(500,500),(500,500)<|box_end|>"
        tried = {
            "centre": [centre for _ in items],
            "random box": [rng.choice(prior["boxes"]) for _ in items] if prior else [],
            "largest element": [_box(max(i.others, key=_area)) for i in items],
        }
    else:
        usual, by_text = prior.get("usual", ""), prior.get("by_text", {})
        tried = {
            "majority": [usual for _ in items],
            "text prior": [by_text.get(plain(i.question), usual) for i in items],
        }
    return {
        name: round(float(np.mean([right(i, a) for i, a in zip(items, found, strict=True)])), 4)
        for name, found in tried.items()
        if found
    }


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _box(box: Sequence[float]) -> str:
    x1, y1, x2, y2 = (round(1000 * n) for n in box)
    return f"{MARK}({x1},{y1}),({x2},{y2})<|box_end|>"


def by_name(items: Iterable[Item]) -> dict[str, list[Item]]:
    """Questions of each part and kind, such as "elements/place"."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(f"{item.part}/{item.kind}", []).append(item)
    return found


def summary(scores: dict[str, Any]) -> dict[str, Any]:
    """The figures by the names that the documentation uses."""

    def of(name: str) -> Any:
        return scores.get(name, {}).get("value")

    def mean(*names: str) -> Any:
        there = [scores[n] for n in names if n in scores and scores[n]["n"]]
        total = sum(s["n"] for s in there)
        return round(sum(s["value"] * s["n"] for s in there) / total, 4) if total else None

    return {
        "grounding": of("elements/place"),
        "grounding_unseen_apps": {size: of(f"{size}/place") for size in SCREENS},
        "referring": of("elements/name"),
        "referring_unseen_apps": {size: of(f"{size}/name") for size in SCREENS},
        "ui_qa": mean(*(f"{size}-qa/place" for size in SCREENS)),
        "ocr_cer": of("line/error"),
        "paragraph_cer": of("paragraph/error"),
        "charts": mean("chart/number", "chart/text", "chart/yes_no"),
        "shapes": mean("shapes/text", "shapes/yes_no"),
        "shapes_place": of("shapes/place"),
        "easy_vqa": mean("easy/text", "easy/yes_no"),
        "digits": of("digit/text"),
        "hallucination": of("elements/yes_no"),
        "two_pictures": mean("two/text", "two/yes_no"),
        "photos": mean("photo/text", "photo/yes_no"),
        "calls": of("call/text"),
        "reasoning": {"thinking": of("thought/text"), "direct": of("sums/text")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="andes-nano", help="a checkpoint folder, or an installed model")
    parser.add_argument("--name", help="what the figures stand under in --out; the model, unless given")
    parser.add_argument("--out", type=Path, help="a file of JSON to which the figures are added")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--data", type=Path, default=OUT, help="what examples/nano/held_out.py wrote")
    parser.add_argument("--parts", nargs="*", default=None, choices=PARTS, help="all that there are, unless given")
    parser.add_argument("--limit", type=int, default=0, help="questions of each part and kind")
    parser.add_argument("--no-blind", action="store_true", help="leave out the answers to noise")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    pipe = Pipeline.from_pretrained(args.model, backend=args.backend)
    scores: dict[str, Any] = {}
    priors: dict[str, Any] = {}
    noisy: dict[str, Any] = {}
    found: dict[str, Any] = {}
    prior = json.loads((args.data / "priors.json").read_text(encoding="utf-8"))
    for part in args.parts or PARTS:
        for name, items in by_name(read(args.data / f"{part}.jsonl", part)).items():
            items = spread(items, args.limit)
            scores[name] = figure(items, answers_of(pipe, items, name))
            priors[name] = baselines(items, prior[part].get(items[0].kind, {}))
            if items[0].images and not args.no_blind:
                noisy[name] = figure(items, answers_of(pipe, items, f"{name}, blind", blind=True))
        found = {**summary(scores), "baselines": priors, "blind": summary(noisy)}
        found |= {"scores": scores, "blind_scores": noisy, "parameters": pipe.model.parameter_count()}
        if args.out is not None:  # after each part, so that a long run that is stopped leaves what it has
            there = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
            there[args.name or args.model] = found
            write_atomically(args.out, (json.dumps(there, indent=1) + "\n").encode())
    if args.json:
        print(json.dumps(found))
        return
    out = io.StringIO()
    table(scores, priors, noisy, Console(file=out, width=120))
    print(out.getvalue())


def table(scores: dict[str, Any], priors: dict[str, Any], noisy: dict[str, Any], console: Console) -> None:
    """Scores beside their baselines."""
    from rich.table import Table

    shown = Table("part", "n", "score", "95 %", "blind", "best without looking")
    for name, score in scores.items():
        if score["n"]:
            low, high = score["ci"]
            pick = min if name.endswith("/error") else max
            best = pick(priors[name].items(), key=lambda pair: pair[1])
            blind = noisy.get(name, {}).get("value")
            row = (name, str(score["n"]), f"{score['value']:.3f}", f"{low:.3f} to {high:.3f}")
            shown.add_row(*row, "" if blind is None else f"{blind:.3f}", f"{best[1]:.3f} ({best[0]})")
    console.print(shown)


if __name__ == "__main__":
    main()
