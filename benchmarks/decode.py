"""Tokens per second of the numba backend and of llama.cpp on the same machine, at the shape of Qwen3-0.6B.

    pip install xllamacpp gguf                                 # llama.cpp and its file format
    python benchmarks/decode.py --json                         # every format, two peers, about four minutes
    python benchmarks/decode.py --quick                        # our 4-bit format against Q4_0
    python benchmarks/decode.py --kinds w4_g32,Q4_0 --prompt 512

Weights are random: speed does not depend on their values. Engines take turns within each round, and the read bandwidth
of the machine is measured in the same rounds; figures are medians over rounds. Decoding is greedy, one sequence, after
a prompt; ours goes through the session that every user gets.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from andes_numba.simd import FOUR, add_i, load_i, store_f, zeros_i
from numba import njit, prange
from rich.console import Console
from rich.table import Table

OURS = ("w8", "w4_g32", "w4_g128", "ternary_g128", "nm14_w4", "nm28_w4", "nm14_w2")
PEERS = {"Q8_0": (32, 34), "Q4_0": (32, 18), "TQ2_0": (256, 66)}
"""llama.cpp type -> weights and bytes of a block."""

Timing = dict[str, float]
Engine = Callable[[int, int], Timing]
"""(prompt rows, tokens) -> tokens per second of "prefill" and of "decode"."""


# ---------------------------------------------------------------- ours


def ours(name: str, threads: int) -> tuple[Engine, int]:
    """A session on random packed weights, and their bytes."""
    import torch
    from andes_numba import Numba
    from andes_numba.backend import compile_packed

    from andes_sdk import Pipeline
    from andes_sdk.runtime.policy import KeepAll
    from andes_sdk.types import Inputs

    # only the parts that run on torch get memory: the embedding
    pipe = Pipeline.from_plugins(["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "0.6b"}}])
    model = pipe.meta_model()
    for part in (model.vision_encoder, model.mlp, model.language_model.model.embed_tokens):
        part.to_empty(device="cpu")
    with torch.no_grad():
        model.language_model.model.embed_tokens.weight.normal_(std=0.02)
    packed = random_model(model, name)
    compiled = compile_packed(model, packed, Numba(format=name, threads=threads), dtype="float32")

    def run(prompt: int, tokens: int) -> Timing:
        session = compiled.session(KeepAll())
        ids = torch.arange(prompt) % 1000
        start = time.perf_counter()
        token = int(session.prefill(Inputs(ids=ids)).argmax())
        middle = time.perf_counter()
        for _ in range(tokens):
            token = int(session.extend([token])[0][0].argmax())
            session.commit()
        end = time.perf_counter()
        return {"prefill": prompt / (middle - start), "decode": tokens / (end - middle)}

    return run, packed.nbytes


def random_model(model: Any, name: str) -> Any:
    """Random bytes in the place of packed matrices, with scales that keep the numbers small."""
    from andes_numba.weights import aligned, assemble, sizes_of

    from andes_sdk.formats import find

    sizes, layout, rng = sizes_of(model), find(name), np.random.default_rng(0)

    def matrix(rows: int, cols: int) -> np.ndarray:
        blocks, size = layout.packed_shape(rows, cols)
        packed = rng.integers(0, 256, (blocks, size), np.uint8).reshape(blocks, -1, layout.group_bytes)
        packed[:, :, :32] = np.full(16, 1e-3, np.float16).view(np.uint8)
        return aligned(packed.reshape(blocks, size))

    shapes = (
        ((sizes.q_heads + 2 * sizes.kv_heads) * sizes.head, sizes.width),
        (sizes.width, sizes.q_heads * sizes.head),
        (2 * sizes.inner, sizes.width),
        (sizes.width, sizes.inner),
    )
    layers = [[matrix(*shape) for shape in shapes] for _ in range(sizes.layers)]
    ones = [
        np.ones(s, np.float32) for s in ((sizes.layers, 2, sizes.width), (sizes.layers, 2, sizes.head), sizes.width)
    ]
    return assemble(sizes, layers, matrix(sizes.vocab, sizes.width), *ones, 1e-6)


# ---------------------------------------------------------------- llama.cpp


def llama(kind: str, threads: int, folder: Path) -> tuple[Engine, int]:
    """A llama.cpp server in this process on a random GGUF, and the bytes of its matrices."""
    import xllamacpp

    path, size = write_gguf(kind, folder)
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 2048, 1, True, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def run(prompt: int, tokens: int) -> Timing:
        request = {
            "prompt": [i % 1000 for i in range(prompt)], "n_predict": tokens, "temperature": 0.0, "ignore_eos": True,
            "cache_prompt": False,
        }  # fmt: skip
        timings = server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == tokens, timings
        return {"prefill": timings["prompt_per_second"], "decode": timings["predicted_per_second"]}

    return run, size


def write_gguf(kind: str, folder: Path) -> tuple[Path, int]:
    """A Qwen3-0.6B of random blocks, head of the same type -> file, and bytes of its matrices without the embedding."""
    import gguf

    weights, bytes_ = PEERS[kind]
    path, rng, size = folder / f"{kind}.gguf", np.random.default_rng(0), 0
    quant = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "qwen3")
    _metadata(writer, gguf.LlamaFileType.ALL_F32)
    scale_at = 64 if kind == "TQ2_0" else 0

    def matrix(name: str, rows: int, cols: int) -> int:
        blocks = rng.integers(0, 256, (rows, cols // weights, bytes_), np.uint8)
        blocks[:, :, scale_at : scale_at + 2] = np.full(1, 1e-3, np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=quant)
        return blocks.nbytes

    def norm(name: str, width: int) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    matrix("token_embd.weight", 151_936, 1024)
    for n in range(28):
        shapes = {
            "attn_q": (2048, 1024), "attn_k": (1024, 1024), "attn_v": (1024, 1024), "attn_output": (1024, 2048),
            "ffn_gate": (3072, 1024), "ffn_up": (3072, 1024), "ffn_down": (1024, 3072),
        }  # fmt: skip
        size += sum(matrix(f"blk.{n}.{name}.weight", *shape) for name, shape in shapes.items())
        for name, width in {"attn_norm": 1024, "ffn_norm": 1024, "attn_q_norm": 128, "attn_k_norm": 128}.items():
            norm(f"blk.{n}.{name}.weight", width)
    norm("output_norm.weight", 1024)
    size += matrix("output.weight", 151_936, 1024)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, size


def _metadata(writer: Any, file_type: int) -> None:
    writer.add_file_type(file_type)
    writer.add_context_length(2048)
    writer.add_embedding_length(1024)
    writer.add_block_count(28)
    writer.add_feed_forward_length(3072)
    writer.add_head_count(16)
    writer.add_head_count_kv(8)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    # a vocabulary of the right size, of words that mean nothing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{n}" for n in range(151_936)])
    writer.add_token_types([1] * 151_936)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(151_935)


# ---------------------------------------------------------------- the machine


@njit(parallel=True, nogil=True)
def _read(words: int, count: int, sums: int, threads: int) -> None:
    """Add `count` runs of 256 bytes up, four vectors at a time, as fast as they come."""
    for n in prange(threads):
        total = zeros_i(FOUR)
        for i in range(n * count // threads, (n + 1) * count // threads):
            total = add_i(total, load_i(FOUR, words + 256 * i, 64))
        store_f(sums + 256 * n, 64, total)


def bandwidth(threads: int) -> Callable[[], float]:
    """A function that measures GB/s read from memory."""
    words, sums = np.ones(1 << 29, np.uint8), np.zeros((threads, 256), np.uint8)  # 512 MB: more than any cache

    def measure() -> float:
        start = time.perf_counter()
        _read(words.ctypes.data, words.size // 256, sums.ctypes.data, threads)
        return float(words.nbytes / (time.perf_counter() - start) / 1e9)

    measure()  # compile
    return measure


# ---------------------------------------------------------------- the run


def compare(kinds: list[str], *, threads: int, rounds: int, prompt: int, tokens: int) -> dict[str, Any]:
    """Medians per engine, from `rounds` rounds in which all take turns."""
    with tempfile.TemporaryDirectory() as folder:
        engines = {k: llama(k, threads, Path(folder)) if k in PEERS else ours(k, threads) for k in kinds}
        read = bandwidth(threads)
        for engine, _ in engines.values():
            engine(8, 4)  # compile, map the weights, start threads
        found: dict[str, list[Timing]] = {k: [] for k in kinds}
        stream: list[float] = []
        for _ in range(rounds):
            for kind, (engine, _) in engines.items():
                stream.append(read())
                found[kind].append(engine(prompt, tokens))
    gbps = statistics.median(stream)
    rows = []
    for kind, (_, size) in engines.items():
        decode, prefill = (sorted(t[part] for t in found[kind]) for part in ("decode", "prefill"))
        median = statistics.median(decode)
        rows.append({
            "engine": "llama.cpp" if kind in PEERS else "numba", "weights": kind, "megabytes": round(size / 1e6, 1),
            "decode": round(median, 1), "decode_range": [round(decode[0], 1), round(decode[-1], 1)],
            "prefill": round(statistics.median(prefill), 1),
            "share_of_bandwidth": round(median * size / 1e9 / gbps, 3),
        })  # fmt: skip
    facts = {"threads": threads, "rounds": rounds, "prompt": prompt, "tokens": tokens, "load": os.getloadavg()[0]}
    return {"read_gb_per_s": round(gbps, 1), **facts, "rows": rows}


def table(result: dict[str, Any]) -> Table:
    """For people."""
    title = f"Qwen3-0.6B shape, {result['threads']} threads, memory {result['read_gb_per_s']} GB/s"
    shown = Table(title=title)
    for head in ("engine", "weights", "MB", "decode tok/s", "range", "prefill tok/s", "of bandwidth"):
        shown.add_column(head, justify="left" if head in ("engine", "weights") else "right")
    for row in result["rows"]:
        low, high = row["decode_range"]
        cells = (row["engine"], row["weights"], row["megabytes"], row["decode"], f"{low}-{high}", row["prefill"])
        shown.add_row(*map(str, cells), f"{row['share_of_bandwidth']:.0%}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join([*OURS, *PEERS]), help="formats of ours and types of llama.cpp")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=128, help="rows of the prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens decoded in each round")
    parser.add_argument("--quick", action="store_true", help="one of each, three short rounds")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    if given.quick:
        given.kinds, given.rounds, given.prompt, given.tokens = "w4_g32,Q4_0", 3, 32, 16
    logging.disable(logging.WARNING)
    sizes = {"rounds": given.rounds, "prompt": given.prompt, "tokens": given.tokens}
    result = compare(given.kinds.split(","), threads=given.threads, **sizes)
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        Console().print(table(result))


if __name__ == "__main__":
    main()
