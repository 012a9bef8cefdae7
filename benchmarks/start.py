"""How long a first answer takes, from the start of the process: `python benchmarks/start.py --quick --json`.

A small model is packed and asked with `andes chat` on the numba backend, once with an empty cache of machine code and
then with a full one; the median of the warm runs is given. Time ends at the first character of the answer. Between them
one run compiles everything itself, so that no process in the background takes part in the warm ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from andes_sdk import Pipeline

PARTS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
FIRST_LIGHT = Path(__file__).parents[1] / "examples" / "first_light" / "model"
CODE = """
import sys
from andes_sdk.cli import main
try:
    main()
finally:
    print("transformers" in sys.modules, file=sys.stderr)
"""


def packed(folder: Path, source: Path) -> Path:
    """A model packed for the backend."""
    from andes_compression.pack import pack_model
    from andes_compression.recipe import default_recipe

    pipe = Pipeline.from_pretrained(source) if source.is_dir() else Pipeline.from_plugins(PARTS)
    return pack_model(pipe.model, default_recipe(pipe.model, "w8"), folder / "m.andes", plan=pipe.plan).path


def first_token(model: Path, cache: Path, compiling: str = "beside") -> tuple[float, bool]:
    """Seconds from the start of `andes chat` to the first character, and whether transformers was imported."""
    command = [sys.executable, "-c", CODE, "chat", "Hello", "-m", str(model), "--backend", "numba", "--max-tokens", "8"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "ANDES_NUMBA_COMPILING": compiling}
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode or not first:
        raise SystemExit(f"no answer: {errors.decode()[-2000:]}")
    return seconds, errors.decode().split()[-1] == "True"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 warm runs instead of 9")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--model", type=Path, default=FIRST_LIGHT, help="checkpoint folder to pack")
    given = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        model = packed(Path(folder), given.model)
        cold, imported = first_token(model, Path(folder) / "cache")
        first_token(model, Path(folder) / "cache", "first")
        warm = [first_token(model, Path(folder) / "cache")[0] for _ in range(3 if given.quick else 9)]
    facts = {
        "cold_start_s": round(statistics.median(warm), 3),
        "first_answer_uncached_s": round(cold, 1),
        "transformers_imported": imported,
        "runs": [round(one, 3) for one in warm],
    }
    print(json.dumps(facts) if given.json else "\n".join(f"{k}: {v}" for k, v in facts.items()))


if __name__ == "__main__":
    main()
