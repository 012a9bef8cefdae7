"""Prompts of the last two stages: questions about pictures with one right answer, and puzzles to think about."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import language

ASKED: Mapping[str, int] = {
    "elements": 600, "small": 600, "mobile": 300, "line": 400, "shapes": 500, "chart": 400, "digit": 150, "easy": 300,
    "two": 200, "call": 150,
}  # fmt: skip
"""Part -> lines of it that one question is taken of."""
PUZZLES = 4_000


def questions(data: Path) -> Iterator[dict[str, Any]]:
    """One question of each of some lines, with its answer and the path of its picture."""
    rng = random.Random("nano/prompts")
    for part, count in ASKED.items():
        if not (path := data / f"{part}.jsonl").is_file():
            raise SystemExit(f"{path} is missing: python examples/nano/prepare.py")
        lines = path.read_text(encoding="utf-8").splitlines()
        for text in rng.sample(lines, min(count, len(lines))):
            line = json.loads(text)
            talk = rng.choice(line.get("conversations") or [line["messages"]])
            shown = {"images": line["images"]} if line.get("images") else {}
            yield {"messages": talk[:-1], "answer": talk[-1]["content"], "think": False, **shown}


def puzzles() -> Iterator[dict[str, Any]]:
    """Sums and puzzles of seeds that no line of `sums` or `thought` has, with their answers."""
    for number in range(PUZZLES):
        line = language.reasoning(random.Random(f"nano/puzzles/{number}"), "train", think=False)
        question, answer = line["messages"]
        yield {"messages": [question], "answer": answer["content"], "think": True}
