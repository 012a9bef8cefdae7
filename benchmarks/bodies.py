"""What benchmarks of compression share: bodies on grids, the float model in float32, the mixture, rows that stay."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from andes_training.recipe import load_recipe

from andes_sdk import Pipeline
from andes_sdk.files import appearing_file

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "examples" / "nano"
QUESTIONS = 8
"""Most conversations of a picture in a step of training."""
BODIES: dict[str, dict[str, Any]] = {
    "w4_g32": {"body": "w4_g32", "rate": 1e-4},
    "ternary_g128": {"body": "ternary_g128", "rate": 3e-4},
    "nm28_w4": {"body": "nm28_w4", "rate": 3e-4},
    "nm14_w4": {"body": "nm14_w4", "rate": 3e-4},
    "34+kv": {"body": "ternary34_g128", "roles": {"k": "w4_g128", "v": "w4_g128"}, "rate": 3e-4},
    "34+o": {"body": "ternary34_g128", "roles": {"o": "w4_g128"}, "rate": 3e-4},
    "34+first": {
        "body": "ternary34_g128",
        "rate": 3e-4,
        "roles": {f"0.{role}": "w4_g128" for role in ("q", "k", "v", "o", "gate", "up")},
    },
    "ternary34_g128": {"body": "ternary34_g128", "rate": 3e-4},
}
"""Name of a body -> its grids and the learning rate."""
REST = {"embedding": "w4_g32", "head": "w4_g32", "vision": "w8", "projector": "w8"}


def precision() -> str:
    """Of training: bfloat16 with AVX-512; a processor without it takes five times as long for that as for float32."""
    return "bf16" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "no"


def opened(model: Path, *plugins: Any) -> Pipeline:
    """The float model with further plugins; computes in float32."""
    return Pipeline.from_pretrained(model, dtype="float32", plugins=list(plugins))


def teacher(model: Path, folder: Path) -> str:
    """The float model once more, in float32: in its own 16 bits it would be slow, see `precision`."""
    made = folder / "teacher"
    if not made.exists():
        opened(model).save_pretrained(made)
    return str(made)


def mixture(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The files of the recipe --mix, in --data, with their weights; what is larger than a step is left out."""
    some = load_recipe(given.mix).stages[0].data
    paths = [given.data / one.path.relative_to("data") for one in some]
    return [
        {
            "path": str(path.resolve()), "weight": one.weight, "questions": min(one.questions or QUESTIONS, QUESTIONS),
            "on_error": "skip", "max_errors": 1 << 30,
        }
        for path, one in zip(paths, some, strict=True)
    ]  # fmt: skip


def keep_row(kept: Path, found: dict[str, Any], name: str, made: Callable[[], dict[str, Any]]) -> None:
    """Make a row, time it, and write all rows so far: what is measured stays, whatever comes."""
    begin = time.perf_counter()
    found["rows"][name] = made()
    found["rows"][name]["seconds"] = round(time.perf_counter() - begin, 1)
    print(name, found["rows"][name], file=sys.stderr)
    with appearing_file(kept) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
