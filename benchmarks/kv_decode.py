"""How much sooner a step comes behind fewer rows, and behind rows of fewer bits.

    python benchmarks/kv_decode.py --json
    python benchmarks/kv_decode.py --kv int8 --rows 32768

The shape of Qwen3-0.6B with random weights of 4.5 bits, on numba. Steps of one token in turns: behind all rows, behind
a share of them, and behind twice the share in int8. All of them read the same memory, so that 131,072 rows in f16 take
15 GB and no more: what is measured is reading rows, and their numbers are random.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from andes_sdk import Pipeline

SPARE = 16
"""Rows behind those of the whole context: each session writes its step there."""


def filled(session: Any, rows: int) -> None:
    """As if a session of numba had read so many rows."""
    store, rng = session.store, np.random.default_rng(0)
    store.reserve(rows + SPARE)
    some = rng.standard_normal((4096, store._arrays[0].shape[-1])).astype(np.float32)
    if store.kv == "int8":
        some = (32 * some).clip(-127, 127)
    for start in store.starts.flat:
        for scales in store._arrays[3:]:
            scales[start : start + rows] = 1 / 32
        for array in store._arrays[:2]:
            for at in range(0, rows, len(some)):
                array[start + at : start + min(at + len(some), rows)] = some[: rows - at]
    _holds(session, rows)


def lent(session: Any, lender: Any, rows: int, slot: int) -> None:
    """As if a session had read the last so many rows that fit into the memory of another's, in its own precision."""
    own, other = session.store, lender.store
    total = int(other.counts.flat[0]) + slot  # where its next row goes is the slot
    wide, narrow = (np.dtype(store._arrays[0].dtype).itemsize for store in (other, own))
    pieces = wide // narrow
    own._arrays[:2] = [array.view(own._arrays[0].dtype).reshape(-1, array.shape[-1]) for array in other._arrays[:2]]
    own._arrays[2:] = [np.zeros((len(own._arrays[0]), *a.shape[1:]), a.dtype) for a in own._arrays[2:]]
    own.starts[:] = (other.starts + total) * pieces - rows
    own._room[:] = rows + SPARE
    for start in own.starts.flat:
        for scales in own._arrays[3:]:
            scales[start : start + rows] = 1 / 32
    _holds(session, rows)


def _holds(session: Any, rows: int) -> None:
    session.store.added(rows, np.zeros(rows, np.int64))
    session.length = 16  # what comes next stands here: the shape has fewer positions than this many rows


def timed(session: Any) -> float:
    """Seconds of a step of one token, which is then forgotten."""
    start = time.perf_counter()
    session.extend([7])
    seconds = time.perf_counter() - start
    session.rollback()
    return seconds


def decode_speedup(rows: int, rounds: int, keep: float, kv: str = "f16") -> dict[str, Any]:
    """Time of a step behind all rows over that behind fewer or smaller ones, in turns."""
    from decode_models import write_artefact

    from andes_sdk.runtime.policy import KeepAll

    ways = {"all": (kv, rows), "kept": (kv, int(rows * keep))}
    if kv == "f16":
        ways |= {"int8": ("int8", rows), "kept int8": ("int8", int(rows * keep * 2))}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.andes"
        write_artefact(file, "w4_g32", "w4_g32")
        kinds = {kind for kind, _ in ways.values()}
        pipes = {kind: Pipeline.from_pretrained(file, backend={"numba": {"kv": kind}}) for kind in kinds}
        sessions: dict[str, Any] = {n: pipes[kind].compiled.session(KeepAll()) for n, (kind, _) in ways.items()}
        filled(sessions["all"], rows)
        for slot, name in enumerate(list(ways)[1:], 1):
            lent(sessions[name], sessions["all"], ways[name][1], slot)
        seconds = {name: [timed(session)] for name, session in sessions.items()}  # the first steps compile
        nbytes = sessions["all"].stats.kv_bytes
        for _ in track(range(rounds), "steps", console=Console(stderr=True)):
            for name, session in sessions.items():
                seconds[name].append(timed(session))
    took = {name: some[1:] for name, some in seconds.items()}
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(took["all"], some, strict=True)), 2)
        for name, some in took.items()
    }
    middle = {name: statistics.median(some) for name, some in took.items()}
    return {
        "rows": rows, "kv": kv, "rounds": rounds, "speedup": ratios["kept"], "speedups": ratios,
        "ms": {name: round(1e3 * some, 1) for name, some in middle.items()},
        "gb_per_s": round(nbytes / middle["all"] / 1e9, 1),
    }  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--kv", default="f16", choices=["f16", "int8"], help="precision of all rows")
    parser.add_argument("--json", action="store_true", help="JSON on stdout, and nothing else")
    given = parser.parse_args()
    found = decode_speedup(given.rows, given.rounds, given.keep, given.kv)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print("| rows | ms a step | sooner |\n|---|---|---|")
    for name, ms in found["ms"].items():
        print(f"| {name} | {ms} | {found['speedups'][name]} × |")


if __name__ == "__main__":
    main()
