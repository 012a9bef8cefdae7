"""Screens of user interfaces, rendered by the plugin andesui: kits of others and generated applications."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KITS = (
    "admin-lte", "admin-lte-4", "sb-admin-2", "material-dashboard", "soft-ui-dashboard", "startbootstrap-agency",
    "startbootstrap-creative",
)  # fmt: skip
"""All under the MIT licence. `andes ui fetch` checks what each package states."""
APPLICATIONS, PAGES, VIEWS = 700, 2, 3
SIZES = ("desktop", "mobile", "small")
FEWEST = 6
"""Elements that a screen of a test names, at least: among fewer, a guess is often right."""

TASKS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {"": ("grounding", "referring", "qa", "description")},
    "test": {"": ("grounding", "referring"), "-qa": ("qa",)},
}
"""Split -> what is added to the name of a size, and the tasks of that file."""


def andes(*arguments: str | Path) -> None:
    """Run `andes` of this environment."""
    subprocess.run([sys.executable, "-m", "andes_sdk", *map(str, arguments)], check=True)


def render(out: Path, limit: int = 0) -> Path:
    """Fetch the kits and render them, or go on with it -> the folder of screens. `limit` leaves out the kits."""
    screens, kits = out / "screens", out / "kits"
    sources: list[str | Path] = [f"generated:{APPLICATIONS if not limit else 8}"]
    if not limit:
        missing = [name for name in KITS if not (kits / name).is_dir()]
        if missing:
            andes("ui", "fetch", *missing, "--to", kits)
        sources = [*(kits / name for name in KITS), *sources]
    more = ["--limit", str(limit)] if limit else []
    andes(
        "ui", "render", *sources, "--out", screens, "--sizes", ",".join(SIZES), "--pages", str(PAGES), "--views",
        str(VIEWS), "--test-share", "0.15", "--jobs", "2", *more,
    )  # fmt: skip
    return screens


def lines(screens: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of a part, data line) for each screen of a split: all its questions, so that it is encoded once."""
    facts = {}
    for text in (screens / "screens.jsonl").read_text().splitlines():
        screen = json.loads(text)
        facts[Path(screen["image"]).name] = screen["kind"]
    for suffix, tasks in TASKS[split].items():
        talks: dict[str, list[Any]] = {}
        named: dict[str, int] = {}
        for task in tasks:
            for text in (screens / split / "lines" / f"{task}.jsonl").read_text().splitlines():
                line = json.loads(text)
                name = Path(line["images"][0]).name
                talks.setdefault(name, []).extend(line["conversations"])
                if task == "grounding":
                    named[name] = len(line["conversations"])
        for name, conversations in talks.items():
            if split == "test" and named and named.get(name, 0) < FEWEST:
                continue
            yield f"{facts[name]}{suffix}", {"images": [f"../screens/screens/{name}"], "conversations": conversations}


def write(out: Path, limit: int = 0) -> None:
    """`desktop.jsonl`, `mobile.jsonl` and `small.jsonl` of both splits, and questions of the tests apart."""
    screens = render(out, limit)
    for split in ("train", "test"):
        parts: dict[str, list[str]] = {f"{size}{suffix}": [] for size in SIZES for suffix in TASKS[split]}
        for part, line in lines(screens, split):
            parts[part].append(json.dumps(line, ensure_ascii=False) + "\n")
        for part, texts in parts.items():
            target = out / split / f"{part}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            building = target.with_suffix(".part")
            building.write_text("".join(texts))
            building.rename(target)
