"""What an adapter of rank 16 on all linear layers costs a decode step of Qwen3-0.6B, and how long a switch takes.

    .venv/bin/python benchmarks/adapters.py --quick --json

Two packed bodies of random weights, `nm14_w4` (1.6 bits) and `w4_g32` (4.5 bits), each with a `w4_g32` embedding that
is the head too. One session decodes; rounds with the adapter and without it take turns. The fastest of each are
compared: other work on the machine disturbs those least.
"idle" is the same session without an adapter, after four were loaded, against before. "int8" is one of them once more,
with int8 matrices (`andes_adapters.int8`); the others are held as float16. bytes: of one adapter in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

BODIES = {"sub2": "nm14_w4", "w4": "w4_g32"}
RANK, NAMES, INT8 = 16, ("one", "two", "three"), "int8"
KINDS = {"float16": NAMES[0], "int8": INT8}


def adapter(name: str, layers: int, seed: int) -> Any:
    """Random A and B for all seven linear layers of every decoder layer."""
    import torch
    from decode_models import HEAD, HEADS, INNER, KV_HEADS, WIDTH

    from andes_sdk.types import Adapter, LowRank

    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes = {
        "self_attn.q_proj": (q, WIDTH), "self_attn.k_proj": (kv, WIDTH), "self_attn.v_proj": (kv, WIDTH),
        "self_attn.o_proj": (WIDTH, q), "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }  # fmt: skip
    noise = torch.Generator().manual_seed(seed)
    made = {}
    for n in range(layers):
        for role, (rows, columns) in shapes.items():
            a, b = (0.01 * torch.randn(*s, generator=noise) for s in ((RANK, columns), (rows, RANK)))
            made[f"model.layers.{n}.{role}"] = LowRank(a=a, b=b, scale=1.0)
    return Adapter(name=name, layers=made)


def decode(session: Any, tokens: int) -> float:
    """Milliseconds per greedy token."""
    token, begin = 1, time.perf_counter()
    for _ in range(tokens):
        token = int(session.extend([token])[0][0].numpy().argmax())
        session.commit()
    return 1e3 * (time.perf_counter() - begin) / tokens


def measure(path: Path, threads: int, rounds: int, tokens: int) -> dict[str, float]:
    """Of one body: ms per token without and with an adapter, ratios, and ms of a switch."""
    import torch
    from andes_adapters.int8 import as_int8, widest
    from decode_models import LAYERS

    from andes_sdk import Pipeline
    from andes_sdk.runtime.policy import KeepAll
    from andes_sdk.types import Inputs

    torch.set_num_threads(1)
    pipe = Pipeline.from_pretrained(path, backend={"numba": {"threads": threads, "kv": "int8"}})
    pipe.compiled.whole.here()  # compiled before anything is timed
    ids = torch.arange(64) % 1000

    def opened(name: str | None = None) -> Any:
        session = pipe.compiled.session(KeepAll())
        session.prefill(Inputs(ids=ids))
        session.commit()
        session.adapter = name
        return session

    session = opened()
    decode(session, tokens)
    before = min(decode(opened(), tokens) for _ in range(rounds))
    for n, name in enumerate(NAMES):
        pipe.compiled.add_adapter(adapter(name, LAYERS, n))
    first = adapter(INT8, LAYERS, 0)
    pipe.compiled.add_adapter(as_int8(first, widest([first])))
    for name in (NAMES[0], INT8):
        decode(opened(name), 2)
    without, with_, int8 = [], [], []
    for _ in range(rounds):
        without.append(decode(opened(), tokens))
        with_.append(decode(opened(NAMES[0]), tokens))
        int8.append(decode(opened(INT8), tokens))
    switches = []
    for n in range(300):
        begin = time.perf_counter()
        session.adapter = NAMES[n % 3]
        switches.append(1e3 * (time.perf_counter() - begin))
    plain, adapted = min(without), min(with_)
    return {
        "ms": plain, "ms_adapter": adapted, "ratio": adapted / plain, "ratio_int8": min(int8) / plain,
        "ratio_idle": plain / before, "switch_ms": statistics.median(switches),
        **{f"bytes_{name}": pipe.compiled.adapters.nbytes(name) for name in (NAMES[0], INT8)},
    }  # fmt: skip


def figures(quick: bool, threads: int, only: str | None = None) -> dict[str, Any]:
    """What the command prints, of both bodies or of one."""
    from decode_models import write_artefact

    rounds, tokens = (5, 16) if quick else (15, 32)
    folder = Path(tempfile.gettempdir()) / "andes-benchmark-adapters"
    folder.mkdir(exist_ok=True)
    found, unchanged = {}, True
    for name, body in BODIES.items():
        if only not in (None, name):
            continue
        path = folder / f"{body}.andes"
        if not path.exists():
            write_artefact(path, body, "w4_g32")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = measure(path, threads, rounds, tokens)
        unchanged &= hashlib.sha256(path.read_bytes()).hexdigest() == digest
    return {
        "decode_ratio_adapter": {name: round(one["ratio"], 3) for name, one in found.items()},
        "decode_ratio_int8": {name: round(one["ratio_int8"], 3) for name, one in found.items()},
        "decode_ratio_idle": {name: round(one["ratio_idle"], 3) for name, one in found.items()},
        "bytes": {kind: max(one[f"bytes_{name}"] for one in found.values()) for kind, name in KINDS.items()},
        "switch_ms": round(max(one["switch_ms"] for one in found.values()), 4),
        "base_unchanged": unchanged,
        "ms_per_token": {name: round(one["ms"], 3) for name, one in found.items()},
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=BODIES, help="one of the bodies")
    given = parser.parse_args()
    facts = figures(given.quick, given.threads, given.only)
    print(json.dumps(facts) if given.json else json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
