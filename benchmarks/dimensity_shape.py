"""A model of AndesVL-1B's shape with random weights: lint, export for both layouts, and what MediaTek's plugin takes.

    python benchmarks/dimensity_shape.py --json
    python benchmarks/dimensity_shape.py --only bundle --buckets 64,256 --layers 2 --json   # pictures of any shape

Needs the plugin `andesvl` and 6 GB of free disk. `peak_gb`: the largest memory of this process alone, or of LiteRT's
worker beside what this process holds meanwhile. `seconds`: of an export, from the assembled model to the file;
`cpu_seconds`: what it computed, whatever else the machine did meanwhile. `ops_supported`: share of operators of the
written graphs that MediaTek's plugin takes, over the stand-in. Weights are random and stay bfloat16 here, as published
ones are. Lint is a command of its own to a user, so it comes last and what it leaves in memory does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from andes_andesvl.catalogue import plugins_of
from andes_dimensity import environment
from andes_dimensity.check import check, check_graphs, opened
from andes_dimensity.compiler import taken
from andes_dimensity.environment import workplace
from andes_dimensity.export import export
from andes_dimensity.lint import lint
from andes_dimensity.options import Options

from andes_sdk import Pipeline


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def written(pipe: Pipeline, path: Path, options: Options) -> dict[str, Any]:
    """Time, memory and exactness of one export."""
    start, used = time.monotonic(), time.process_time()
    report = export(pipe, path, options, say)
    alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    beside = pages * resource.getpagesize() + report["peak_bytes"]
    graphs = {name: facts["bytes"] for name, facts in report["files"].items()}
    return {
        "seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - used + report["cpu_seconds"],
        "peak_gb": max(alone, beside) / 1e9,
        "worker_gb": report["peak_bytes"] / 1e9, "bytes": report["bytes"], "weights": report["weights"],
        "weights_exact": report["weights_exact"], "graphs": graphs,
        "activations": report["files"]["text"].get("activations"),
    }  # fmt: skip


def pictures(bundle: Path) -> dict[str, str]:
    """What MediaTek's plugin takes of a bundle's encoder and projector."""
    out = {}
    with workplace() as place:
        files = opened(bundle, place)["files"]
        for part in ("vision", "projector"):
            found = taken(Path(files[part]), place)
            out[part] = f"{found['taken']} of {found['operators']} operators"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="andesvl-1b", help="a member of the family")
    parser.add_argument("--weights", default="w4")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--picture", default="448x448")
    parser.add_argument(
        "--buckets", default="", help="tokens of graphs for pictures of any shape; --picture is not used"
    )
    parser.add_argument("--layers", type=int, help="of the language model, where pictures are what is asked about")
    parser.add_argument("--only", choices=("bundle", "npu"), help="one of both exports")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    environment.setup(say)
    sizes = {"buckets": given.buckets} if given.buckets else {"picture": given.picture}
    shared = {"weights": given.weights, "rows": given.rows, **sizes}
    say("assembling")
    plugins: list[Any] = list(plugins_of(given.model))
    if given.layers:
        plugins[-1]["qwen3"] |= {"config": {"num_hidden_layers": given.layers}}
    pipe = Pipeline.from_plugins(plugins, dtype="bfloat16", seed=0)
    facts: dict[str, Any] = {"model": given.model, "parameters": sum(p.numel() for p in pipe.model.parameters())}
    with tempfile.TemporaryDirectory() as name:
        if given.only != "npu":
            facts["bundle"] = written(pipe, Path(name, "model.litertlm"), Options(**shared))
            say("MediaTek's plugin")
            facts["bundle"]["ops"] = pictures(Path(name, "model.litertlm"))
            if given.layers:
                say("graphs beside the reference")
                report = check(pipe, Path(name, "model.litertlm"), (), say)
                facts["checked"] = {line.what: line.figure for line in report.lines if line.figure is not None}
            Path(name, "model.litertlm").unlink()
        if given.only != "bundle":
            file = Path(name, "model.tflite")
            facts["npu"] = written(pipe, file, Options(**shared, layout="npu", activations="a16"))
            say("MediaTek's plugin")
            line = next(line for line in check_graphs(file).lines if line.here)
            facts["npu"] |= {"ops_supported": line.figure, "ops": line.value}
    if given.only != "npu":
        say("lint")
        start = time.monotonic()
        found = lint(pipe, Options(**shared))
        facts["lint"] = {"fine": found.fine, "seconds": time.monotonic() - start,
                     "errors": [f.what for f in found.findings if f.level == "error"]}  # fmt: skip
    print(json.dumps(facts, indent=2) if given.json else facts)


if __name__ == "__main__":
    main()
