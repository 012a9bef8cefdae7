"""Our server against llama.cpp's, over HTTP, at the shape of Qwen3-0.6B with 4-bit random weights.

    pip install xllamacpp gguf
    python benchmarks/serve_peer.py --json

Both servers run in processes of their own and take turns. In each turn eight text requests come at the same time, with
prompts of their own, and stream greedy answers of a fixed length. Counted is what arrives: all tokens over the time
from the first request to the last byte. `vs_llama_cpp` is the median over rounds of our tokens per second to
llama.cpp's. Both spin at barriers, so other work on the same cores slows either many times over.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decode_models import write_artefact, write_gguf

HERE = Path(__file__).parent
STREAMS, ROWS, TOKENS = 8, 64, 48


def raw(port: int, path: str, body: Any) -> tuple[bytes, list[tuple[float, bytes]]]:
    """Send a request over a socket -> the answer's bytes, and when each part came; nothing is parsed meanwhile."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    parts = []
    with socket.create_connection(("127.0.0.1", port), timeout=300) as one:
        one.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        while part := one.recv(1 << 16):
            parts.append((time.perf_counter(), part))
    answer = b"".join(part for _, part in parts)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:1000]
    return answer, parts


def llama(path: str, streams: str, threads: str) -> None:
    """llama.cpp's server; says its address, and ends with its input."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.warmup, params.verbosity = path, True, -1
    params.n_parallel, params.n_ctx, params.cont_batching = int(streams), 1024 * int(streams), True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.n_threads_http, params.port = int(streams) + 2, 0
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextmanager
def serving(command: list[str], found: Callable[[str], str], threads: int) -> Iterator[int]:
    """A server of its own process -> its port, which is in the line in which `found` finds an address."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=HERE.parent,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)},
    ) as process:
        try:
            assert process.stdout is not None
            told: list[str] = []
            while not (url := found(told[-1] if told else "")):
                told.append(process.stdout.readline())
                if not told[-1]:
                    raise SystemExit(f"a server did not start: {''.join(told)}")
            yield int(url.strip().rstrip("/").rpartition(":")[2])
        finally:
            process.kill()


def ours(port: int, number: int) -> int:
    """One answer -> its tokens."""
    text = f"{number} " + "word " * (ROWS - 12)  # with the chat template about as many rows as llama.cpp reads
    body = {
        "model": "model", "messages": [{"role": "user", "content": text}], "max_tokens": TOKENS, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    answer, _ = raw(port, "/v1/chat/completions", body)
    return int(answer.rpartition(b'"completion_tokens":')[2].split(b",")[0])


def theirs(port: int, number: int) -> int:
    """One answer -> its tokens."""
    prompt = [1000 + number, *(100 + i % 900 for i in range(ROWS - 1))]
    body = {
        "prompt": prompt, "n_predict": TOKENS, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False,
        "stream": True,
    }  # fmt: skip
    answer, _ = raw(port, "/completion", body)
    return int(answer.rpartition(b'"tokens_predicted":')[2].split(b",")[0])


def together(ask: Callable[[int, int], int], port: int, first: int) -> float:
    """Tokens per second of all streams."""
    start = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        counts = list(pool.map(lambda n: ask(port, first + n), range(STREAMS)))
    assert counts == [TOKENS] * STREAMS, counts
    return sum(counts) / (time.perf_counter() - start)


def compare(
    rounds: int, told: Callable[[str], None] = lambda _: None, keep: Path | None = None, threads: int = 0
) -> dict[str, Any]:
    """Both servers in turns -> the median ratio and speeds.

    Args:
        keep: where models are written, unless they are there. threads: of each server; 0: one for each core.
    """
    threads = threads or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        told("writing models")
        packed, peer = (keep or Path(folder)) / "model.andes", (keep or Path(folder)) / "model.gguf"
        if not packed.exists():
            write_artefact(packed, "w4_g32", "w4_g32")
        if not peer.exists():
            write_gguf(peer, "Q4_0", "Q4_0")
        own = [
            sys.executable, "-m", "andes_sdk", "serve", str(packed), "--name", "model", "--backend", "numba", "--port",
            "0", "--concurrency", str(STREAMS),
        ]  # fmt: skip
        other = [sys.executable, __file__, "--llama", str(peer), str(STREAMS), str(threads)]
        with (
            serving(
                own, lambda line: line.partition(" at ")[2] if line.startswith("serving ") else "", threads
            ) as port,
            serving(other, lambda line: line if line.startswith("http") else "", threads) as port_of_llama,
        ):
            sides = ((ours, port), (theirs, port_of_llama))
            found: dict[Any, list[float]] = {ours: [], theirs: []}
            for number in range(-1, rounds):
                told(f"against llama.cpp, round {number + 1} of {rounds}")
                for ask, at in sides if number % 2 else reversed(sides):
                    speed = together(ask, at, (number + 1) * STREAMS)
                    if number >= 0:  # the first one warms up
                        found[ask].append(speed)
                        told(f"{ask.__name__}: {speed:.1f} tokens/s")
    return {
        "vs_llama_cpp": statistics.median(a / b for a, b in zip(found[ours], found[theirs], strict=True)),
        "tokens_per_second_of_8": statistics.median(found[ours]),
        "tokens_per_second_of_8_llama_cpp": statistics.median(found[theirs]),
        "rounds_against_llama_cpp": rounds,
        "threads_of_both": threads,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="keep the models there for the next time")
    parser.add_argument("--threads", type=int, default=0, help="of each server; one for each core unless given")
    parser.add_argument("--llama", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.llama:
        llama(*given.llama)
        return
    found = compare(
        given.rounds,
        lambda text: print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True),
        given.models,
        given.threads,
    )
    print(json.dumps(found, indent=2) if given.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
