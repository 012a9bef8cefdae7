"""Choose the held-out pictures and questions that lie in the repository, from the test data of `prepare.py`.

    python examples/nano/held_out.py                     # rows at even distances, into examples/nano/held_out
    python examples/nano/held_out.py --all --out DIR     # every row

The folder has one file of JSON Lines for each part, its pictures, and `priors.json`: the most frequent answers of the
training data, and boxes drawn from it. `benchmarks/nano.py` needs nothing else. A folder that is there is replaced as
a whole; one that this command did not make is refused.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from andes_sdk.files import appearing

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
OUT = HERE / "held_out"
SCREENS = ("small", "desktop", "mobile")
ROWS = {
    "elements": 60, "line": 150, "paragraph": 40, "shapes": 60, "two": 60, "chart": 40, "digit": 200, "easy": 80,
    "photo": 40, "sums": 200, "thought": 200, "call": 150, "small": 30, "desktop": 30, "mobile": 30,
}  # fmt: skip
PUZZLES = ("sums", "thought")
"""Parts without pictures whose questions are drawn from few enough to be drawn twice."""
MARK = "<|box_start|>"
PARTS = (*ROWS, *(f"{size}-qa" for size in SCREENS))


def kind_of(part: str, question: str, truth: str) -> str:
    """How an answer is scored: place, name, yes_no, error, number or text."""
    if truth.startswith(MARK):
        return "place"
    if MARK in question:
        return "name"
    if truth.lower().rstrip(".") in ("yes", "no"):
        return "yes_no"
    if part in ("line", "paragraph"):
        return "error"
    return "number" if part == "chart" and re.fullmatch(r"-?[\d.]+", truth) else "text"


def plain(question: str) -> str:
    """A question without what it names."""
    return re.sub(r'"[^"]*"|“[^”]*”|<\|box_start\|>.*?<\|box_end\|>', "…", question)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def pairs_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Each question of a row with its answer, thoughts left out."""
    talks = row.get("conversations") or [row["messages"]]
    return [(text_of(talk[0]["content"]), talk[-1]["content"].rpartition("</think>")[2]) for talk in talks]


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def prior(part: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each kind: the most frequent answer, that of each question text, and for places boxes to draw from."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for question, truth in pairs_of(row):
            kinds.setdefault(kind_of(part, question, truth), []).append((plain(question), truth))
    made: dict[str, Any] = {}
    for kind, pairs in kinds.items():
        texts: dict[str, Counter[str]] = {}
        for question, truth in pairs:
            texts.setdefault(question, Counter())[truth] += 1
        common = {q: c.most_common(1)[0][0] for q, c in texts.items() if c.total() > 1}
        made[kind] = {"usual": Counter(t for _, t in pairs).most_common(1)[0][0], "by_text": common}
        if kind == "place":
            boxes = random.Random(0).sample([t for _, t in pairs], min(200, len(pairs)))
            made[kind] = {"usual": made[kind]["usual"], "by_text": {}, "boxes": boxes}
    return made


def drawn(question: str) -> tuple[str, ...]:
    """What a puzzle asks, whatever the words around it: its numbers and signs, or its word."""
    return tuple(re.findall(r'\d+|[+-]|"[^"]*"|largest|smallest|backwards', question))


def learnt(rows: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """The puzzles of training data: short sums come up by chance in both splits."""
    return {drawn(question) for row in rows for question, _ in pairs_of(row)}


def chosen(rows: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Rows at even distances."""
    return rows if number >= len(rows) else [rows[i * len(rows) // number] for i in range(number)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every row of the test data")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if args.out.exists() and not (args.out / "priors.json").is_file():  # it would be replaced as a whole
        parser.error(f"{args.out} was not made by this command: it has no priors.json; name a new folder")
    with appearing(args.out) as made:
        (made / "pictures").mkdir()
        names: dict[Path, str] = {}
        priors = {}
        known = learnt([row for part in PUZZLES for row in rows_of(DATA / "train" / f"{part}.jsonl")])
        for part in PARTS:
            rows = rows_of(DATA / "test" / f"{part}.jsonl")
            if part in PUZZLES:
                rows = [row for row in rows if drawn(pairs_of(row)[0][0]) not in known]
            if part in ROWS and not args.all:
                rows = chosen(rows, ROWS[part])
            elif not args.all:
                rows = [r for r in rows if (DATA / "test" / r["images"][0]).resolve() in names]
            for row in rows:
                paths = [(DATA / "test" / image).resolve() for image in row.get("images", ())]
                for path in paths:
                    names.setdefault(path, f"{part}-{len(names):05d}{path.suffix}")
                if paths:
                    row["images"] = [f"pictures/{names[path]}" for path in paths]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (made / f"{part}.jsonl").write_text(lines, encoding="utf-8")
            train = DATA / "train" / f"{part}.jsonl"
            priors[part] = prior(part, rows_of(train)) if train.is_file() else {}
        for path, name in names.items():
            shutil.copyfile(path, made / "pictures" / name)
        (made / "priors.json").write_text(json.dumps(priors, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{args.out}: {sum(p.stat().st_size for p in args.out.rglob('*') if p.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
