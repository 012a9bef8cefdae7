"""Prompts for the last two stages: questions about pictures with one right answer, and puzzles to think about.

    python examples/nano/prompts.py

`prompts.jsonl`: one question of each of some lines of training data, for `andes-pairs`.
`puzzles.jsonl`: sums and puzzles of seeds that no line of `sums` or `thought` has, for GRPO.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import language

HERE = Path(__file__).parent
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
    """Questions to think about, with their answers."""
    for number in range(PUZZLES):
        line = language.reasoning(random.Random(f"nano/puzzles/{number}"), "train", think=False)
        question, answer = line["messages"]
        yield {"messages": [question], "answer": answer["content"], "think": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data" / "train")
    args = parser.parse_args()
    for name, made in (("prompts", questions(args.data)), ("puzzles", puzzles())):
        building = args.data / f"{name}.part"
        building.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in made), encoding="utf-8")
        building.rename(args.data / f"{name}.jsonl")


if __name__ == "__main__":
    main()
