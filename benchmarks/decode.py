"""Tokens per second of the numba backend, of llama.cpp and of transformers on the same machine, at the shape of
Qwen3-0.6B with the embedding as LM head.

    pip install xllamacpp gguf                       # llama.cpp and its file format
    python benchmarks/decode.py --quick --json       # the figures that matter, under four minutes
    python benchmarks/decode.py --out docs/results   # everything, with a plot; about twenty minutes

Every engine runs in a process of its own, once per number of threads. Those of a group take turns within each round,
and so does a loop that only reads memory; all that ratios are made of is one group, but for 4-bit heads and int8 KV.
Figures are medians over rounds, and each engine counts with its better number of threads.
`ratio_sub2`: our best format of at most 1.8 bits per weight to llama.cpp's best type of at most 2.2, with every matrix
of the model in it. `roofline_*`: bytes read per second to those of the loop that only reads. `rss_ratio`: the largest
resident set, less that of the process with its libraries imported, to packed weights and KV rows; `rss_ratio_own`:
without the pages of shared libraries that were loaded after the import. `context_*`: tokens per second behind 4 096
rows to those behind 64.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from attrs import define, evolve, field, frozen
from decode_models import write_artefact, write_gguf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

WEIGHTS = 596_049_920
"""Of the matrices, a tied head counted once."""
HERE = Path(__file__).parent


@frozen
class Spec:
    """An engine and what it runs. `head` is the type of embedding and head, empty: as the body. `kv`: f16 or int8."""

    engine: str
    weights: str
    head: str = ""
    kv: str = "f16"

    @property
    def label(self) -> str:
        """Unique."""
        kv = "" if self.kv == "f16" else f", {self.kv} KV"
        return f"{self.engine} {self.weights}" + (f" + {self.head} head" if self.head else "") + kv


PEERS = (
    *(Spec("numba", w) for w in ("w4_g32", "nm14_w4", "nm14_w2")),
    *(Spec("llama.cpp", w) for w in ("F16", "Q4_0", "TQ2_0")),
)
OTHERS = (
    (*(Spec("numba", w, "w4_g32") for w in ("nm14_w4", "nm14_w2")), Spec("llama.cpp", "TQ2_0", "Q4_0")),
    (*(Spec("numba", w, kv="int8") for w in ("w4_g32", "nm14_w4")),),
    (
        *(Spec("numba", w) for w in ("w8", "w4_g128", "ternary_g128", "nm28_w4")),
        *(Spec("llama.cpp", w) for w in ("Q8_0", "TQ1_0")),
    ),
    (Spec("transformers", "bfloat16"),),
)
"""Groups that are measured one after another: all at once would not fit into memory. Of llama.cpp, KV in Q8_0 is left
out: reading a prompt of 4 096 rows into it takes minutes."""

SUBSET = ("numba w4_g32", "numba nm14_w4", "numba nm14_w2", "llama.cpp Q4_0", "llama.cpp TQ2_0")
"""Measured behind a long context and with long prompts too; those with int8 KV behind a long context."""


@define
class Worker:
    """A process that runs one engine with one number of threads."""

    spec: Spec
    threads: int
    size: int
    process: subprocess.Popen[str]
    errors: IO[str]
    load: float = 0.0
    decode: dict[int, list[float]] = field(factory=dict)
    prefill: dict[int, list[float]] = field(factory=dict)

    @classmethod
    def start(
        cls, spec: Spec, path: Path, size: int, threads: int, context: int,
        script: Sequence[str | Path] = (sys.executable, HERE / "decode_worker.py"),
    ) -> Worker:  # fmt: skip
        """Start and wait until the model is loaded. `script`: a Python and a worker, perhaps of another checkout."""
        command = [*script, spec.engine, path, spec.kv, str(threads), str(context)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
        )
        worker = cls(spec, threads, size, process, errors)
        worker.load = worker._answer()["load"]
        return worker

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, one answer; a short pause lets the threads of the one before fall asleep."""
        time.sleep(0.05)
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"{self.spec.label} ended with {code}:\n{self.errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def time_decode(self, context: int, tokens: int) -> None:
        """Add tokens per second behind the present context."""
        seconds = self.ask(do="decode", tokens=tokens)["seconds"]
        self.decode.setdefault(context, []).append(tokens / seconds)

    def time_prefill(self, rows: int) -> None:
        """Add rows per second of a prompt."""
        self.prefill.setdefault(rows, []).append(rows / self.ask(do="prefill", rows=rows)["seconds"])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The whole run."""
    groups = (PEERS,) if given.quick else (PEERS, *OTHERS)[: given.groups]
    rounds, tokens = given.rounds or (5 if given.quick else 9), given.tokens
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, Progress(console=Console(stderr=True)) as bar:
        job = bar.add_task("", total=len(groups))
        for group in groups:
            files = {s: _write(s, Path(folder)) for s in dict.fromkeys(evolve(s, kv="f16") for s in group)}
            models = {s: files[evolve(s, kv="f16")] for s in group}
            rows += _take_turns(models, rounds, tokens, given.quick, lambda what: bar.update(job, description=what))
            for path, _ in files.values():
                if path.is_file():
                    path.unlink()
            bar.advance(job)
            facts = {"read_gb_per_s": rows[0]["read_gb_per_s"], "threads": _threads(), "rounds": rounds}
            result = {**_figures(rows), **facts, "tokens": tokens, "load": os.getloadavg()[0], "rows": rows}
            if given.out:  # after each group: a run that is interrupted has measured something
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "decode.json").write_text(json.dumps(result, indent=1) + "\n")
                plot(result, given.out / "decode.svg")
    return result


def _threads() -> list[int]:
    return sorted({1, os.cpu_count() or 1})


def _take_turns(
    models: dict[Spec, tuple[Path, int]], rounds: int, tokens: int, quick: bool, tell: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure engines that run at the same time -> a row for each."""
    long, prompts = ([], [512]) if quick else ([4096], [512, 2048])
    context = max([64, *long, *prompts]) + 64 + (rounds + 1) * tokens
    tell("load")
    workers = [Worker.start(s, *models[s], t, context) for s in models for t in _threads()]
    streams = [Worker.start(Spec("stream", "-"), Path("-"), 1 << 29, t, 0) for t in _threads()]
    try:
        for rows in [64, *long]:
            here = [w for w in workers if rows == 64 or w.spec.label in SUBSET or w.spec.kv == "int8"]
            tell(f"decode behind {rows} rows")
            _decode([*here, *streams] if here else [], rows, rounds, tokens)
            if rows == 64:
                memory = {(w.spec, w.threads): w.ask(do="memory") for w in workers}
        for rows in prompts:
            tell(f"prompts of {rows} rows")
            for _ in range(min(rounds, 3) if rows == 512 else 1):
                for w in workers:
                    if w.spec.label in SUBSET or (rows == 512 and not quick and w.spec.kv == "f16"):
                        w.time_prefill(rows)
    finally:
        for w in (*workers, *streams):
            w.process.kill()
    gbps = max(statistics.median(s.decode[64]) * (1 << 29) / 1e9 for s in streams)
    return [_row(s, [w for w in workers if w.spec == s], memory, gbps) for s in models]


def _write(spec: Spec, folder: Path) -> tuple[Path, int]:
    """A model for an engine -> its file and the bytes that a token reads."""
    head = spec.head or spec.weights
    if spec.engine == "numba":
        path = folder / f"{spec.weights}-{head}.andes"
        return path, write_artefact(path, spec.weights, head)
    if spec.engine == "llama.cpp":
        path = folder / f"{spec.weights}-{head}.gguf"
        return path, write_gguf(path, spec.weights, head)
    return folder, 2 * WEIGHTS


def _decode(workers: Sequence[Worker], rows: int, rounds: int, tokens: int) -> None:
    for w in workers:
        w.ask(do="context", rows=rows)
        w.ask(do="decode", tokens=2)  # warm
    for _ in range(rounds):
        for w in workers:
            w.time_decode(rows, 1 if w.spec.engine == "stream" else tokens)


def _row(spec: Spec, workers: Sequence[Worker], memory: dict[Any, dict[str, Any]], gbps: float) -> dict[str, Any]:
    """Medians of an engine, each with its better number of threads."""
    size = workers[0].size
    row: dict[str, Any] = {"engine": spec.engine, "weights": spec.weights, "head": spec.head or spec.weights,
                           "kv": spec.kv, "megabytes": round(size / 1e6, 1), "bpw": round(8 * size / WEIGHTS, 3),
                           }  # fmt: skip
    row["decode_by_threads"] = {w.threads: round(statistics.median(w.decode[64]), 1) for w in workers}
    for context in workers[0].decode:
        best = max(workers, key=lambda w: statistics.median(w.decode[context]))
        found = sorted(best.decode[context])
        row[f"decode_{context}"] = round(statistics.median(found), 1)
        row[f"range_{context}"] = [round(found[0], 1), round(found[-1], 1)]
        row.setdefault("threads", best.threads)
    for rows in workers[0].prefill:
        row[f"prefill_{rows}"] = round(max(statistics.median(w.prefill[rows]) for w in workers), 1)
    row["read_gb_per_s"] = round(gbps, 1)
    row["share_of_bandwidth"] = round(row["decode_64"] * size / 1e9 / gbps, 3)
    last = memory[spec, workers[-1].threads]
    row["load_seconds"] = round(statistics.median(w.load for w in workers), 3)
    row["peak_megabytes"] = round((last["peak"] - last["base"]) / 1e6, 1)
    row["rss_ratio"] = round((last["peak"] - last["base"]) / (size + last["kv"]), 3)
    row["rss_ratio_own"] = round((last["peak"] - last["base"] - last["code"]) / (size + last["kv"]), 3)
    return row


def _figures(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the run is for."""

    def best(engine: str, limit: float, head: str | None = None) -> dict[str, Any]:
        # the body's type decides; with a 4-bit head the whole model weighs more
        heads = [r for r in rows if r["engine"] == engine and r["kv"] == "f16" and r["head"] == (head or r["weights"])]
        within = [r for r in heads if _body_bpw(r) <= limit]
        return max(within, key=lambda r: r["decode_64"])

    def one(engine: str, weights: str, kv: str = "f16") -> dict[str, Any]:
        wanted = (engine, weights, weights, kv)
        return next(r for r in rows if (r["engine"], r["weights"], r["head"], r["kv"]) == wanted)

    sub2, w4, q4 = best("numba", 1.8), one("numba", "w4_g32"), one("llama.cpp", "Q4_0")
    figures = {
        "ratio_sub2": sub2["decode_64"] / best("llama.cpp", 2.2)["decode_64"],
        "ratio_w4": w4["decode_64"] / q4["decode_64"],
        "ratio_f16": sub2["decode_64"] / one("llama.cpp", "F16")["decode_64"],
        "roofline_w4": w4["share_of_bandwidth"],
        "roofline_sub2": max(r["share_of_bandwidth"] for r in rows if r["engine"] == "numba" and r["bpw"] <= 1.8),
        "prefill_ratio": w4["prefill_512"] / q4["prefill_512"],
        "rss_ratio": max(r["rss_ratio"] for r in rows if r["engine"] == "numba"),
        "rss_ratio_own": max(r["rss_ratio_own"] for r in rows if r["engine"] == "numba"),
        "rss_ratio_llama_cpp": max(r["rss_ratio"] for r in rows if r["engine"] == "llama.cpp"),
    }
    if any(r["head"] != r["weights"] for r in rows):
        ours, theirs = best("numba", 1.8, "w4_g32"), best("llama.cpp", 2.2, "Q4_0")
        figures["ratio_sub2_4bit_head"] = ours["decode_64"] / theirs["decode_64"]
    if "decode_4096" in w4:
        named = {"w4_g32": "w4", "nm14_w4": "sub2", "Q4_0": "w4", "TQ2_0": "sub2"}
        for row in rows:
            if row["weights"] in named and "decode_4096" in row:
                whose = "_llama_cpp" if row["engine"] == "llama.cpp" else ""
                figures[f"context_{named[row['weights']]}_{row['kv']}{whose}"] = row["decode_4096"] / row["decode_64"]
    return {name: round(value, 3) for name, value in figures.items()}


def _body_bpw(row: dict[str, Any]) -> float:
    from andes_packing.formats import find
    from decode_models import BLOCKS

    if row["engine"] == "numba":
        return float(find(row["weights"]).bpw)
    weights, size = BLOCKS[row["weights"]]
    return 8 * size / weights


# ---------------------------------------------------------------- showing


def table(result: dict[str, Any]) -> Table:
    """For people."""
    shown = Table(title=f"Qwen3-0.6B shape, memory {result['read_gb_per_s']} GB/s")
    heads = ("engine", "body", "head", "KV", "BPW", "MB", "threads", "decode 64", "range", "decode 4096", "prefill 512",
             "prefill 2048", "of bandwidth", "load s", "peak MB")  # fmt: skip
    for head in heads:
        shown.add_column(head, justify="left" if head in ("engine", "body", "head", "KV") else "right")
    for row in result["rows"]:
        low, high = row["range_64"]
        cells = (
            *(row[name] for name in ("engine", "weights", "head", "kv", "bpw", "megabytes", "threads", "decode_64")),
            f"{low}-{high}", row.get("decode_4096", ""), row.get("prefill_512", ""), row.get("prefill_2048", ""),
            f"{row['share_of_bandwidth']:.0%}", row["load_seconds"], row["peak_megabytes"],
        )  # fmt: skip
        shown.add_row(*map(str, cells))
    return shown


def plot(result: dict[str, Any], path: Path) -> None:
    """Tokens per second against bits per weight, with the limit that memory sets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for engine, mark in (("numba", "o"), ("llama.cpp", "s"), ("transformers", "^")):
        rows = [r for r in result["rows"] if r["engine"] == engine and r["head"] == r["weights"] and r["kv"] == "f16"]
        axes.scatter([r["bpw"] for r in rows], [r["decode_64"] for r in rows], marker=mark, label=engine, zorder=3)
        for r in rows:
            axes.annotate(r["weights"], (r["bpw"], r["decode_64"]), textcoords="offset points", xytext=(6, 4), size=8)
    bits = [1 + n / 10 for n in range(160)]
    limit = [result["read_gb_per_s"] * 1e9 * 8 / (b * WEIGHTS) for b in bits]
    axes.plot(bits, limit, color="grey", linestyle="--", label=f"memory: {result['read_gb_per_s']} GB/s")
    axes.set(xscale="log", yscale="log", xlabel="bits per weight, all matrices", ylabel="decoded tokens per second")
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_yticks([10, 20, 50, 100, 200, 500], ["10", "20", "50", "100", "200", "500"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0, help="rounds of decoding; 0: 5 if quick, else 9")
    parser.add_argument("--tokens", type=int, default=32, help="tokens decoded in each round")
    parser.add_argument("--quick", action="store_true", help="three formats against three types")
    parser.add_argument("--groups", type=int, default=1 + len(OTHERS), help="the first so many groups of engines")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, help="folder for decode.json and decode.svg")
    parser.add_argument("--scratch", type=Path, help="where the models are written meanwhile (up to 5 GB)")
    given = parser.parse_args()
    result = measure(given)
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
