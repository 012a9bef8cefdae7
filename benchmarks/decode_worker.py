"""One engine in a process of its own, driven by lines of JSON: so that peak memory is its own and no thread pool of
one engine steals cores from another. Started by `decode.py`. `base` is the resident set once libraries are imported
(what imports have freed is used again), `code` the pages of shared libraries that came after that.

    {"do": "prefill", "rows": 512}       -> {"seconds": ...}
    {"do": "context", "rows": 64}        -> {}             get ready to decode behind that many rows
    {"do": "decode", "tokens": 32}       -> {"seconds": ...}
    {"do": "memory"}                     -> {"base": ..., "peak": ..., "kv": ..., "code": ...}   bytes
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Engine(Protocol):
    """What a worker drives."""

    def prefill(self, rows: int) -> float:
        """Seconds to read a prompt of that many rows."""

    def context(self, rows: int) -> None:
        """Read a prompt to decode behind."""

    def decode(self, tokens: int) -> float:
        """Seconds for that many greedy tokens behind the context."""

    def kv_bytes(self) -> int:
        """Bytes of the KV rows held."""


def prompt(rows: int) -> list[int]:
    """Token ids that no engine has a reason to treat in a special way."""
    return [100 + i % 900 for i in range(rows)]  # what stands first may be a picture's place


class Ours:
    """The numba backend, through the session that every user gets."""

    def __init__(self, path: Path, threads: int, kv: str) -> None:
        import torch

        from andes_sdk import Pipeline
        from andes_sdk.runtime.policy import KeepAll

        torch.set_num_threads(1)
        pipe = Pipeline.from_pretrained(path, backend={"numba": {"threads": threads, "kv": kv}})
        self._open = lambda: pipe.compiled.session(KeepAll())
        self._session = self._open()
        self._token = 0

    def _read(self, rows: int) -> tuple[Any, int, float]:
        import torch

        from andes_sdk.types import Inputs

        session, start = self._open(), time.perf_counter()
        token = int(session.prefill(Inputs(ids=torch.tensor(prompt(rows)))).numpy().argmax())
        return session, token, time.perf_counter() - start

    def prefill(self, rows: int) -> float:
        """See `Engine`."""
        session, _, seconds = self._read(rows)
        session.close()
        return seconds

    def context(self, rows: int) -> None:
        """See `Engine`."""
        self._session.close()
        self._session, self._token, _ = self._read(rows)

    def decode(self, tokens: int) -> float:
        """See `Engine`."""
        start = time.perf_counter()
        for _ in range(tokens):
            self._token = int(self._session.extend([self._token])[0][0].numpy().argmax())
            self._session.commit()
        return time.perf_counter() - start

    def kv_bytes(self) -> int:
        """See `Engine`."""
        return self._session.stats.kv_bytes


class Llama:
    """llama.cpp, through its own server in this process; the times are those it measures itself."""

    def __init__(self, path: Path, threads: int, kv: str, context: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        if kv == "int8":
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, True, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(params)
        self._rows, self._kv = 0, kv

    def _complete(self, rows: int, tokens: int, *, keep: bool) -> dict[str, float]:
        request = {
            "prompt": prompt(rows), "n_predict": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": keep,
        }  # fmt: skip
        timings = self._server.handle_completions(request)["timings"]
        assert timings["predicted_n"] == tokens, timings
        return timings

    def prefill(self, rows: int) -> float:
        """See `Engine`."""
        return self._complete(rows, 1, keep=False)["prompt_ms"] / 1e3

    def context(self, rows: int) -> None:
        """See `Engine`."""
        self._rows = rows
        self._complete(rows, 1, keep=True)

    def decode(self, tokens: int) -> float:
        """See `Engine`."""
        # the first token comes with the prompt, so one more is asked for than is timed
        timings = self._complete(self._rows, tokens + 1, keep=True)
        return timings["predicted_ms"] / 1e3 * tokens / timings["predicted_n"]

    def kv_bytes(self) -> int:
        """See `Engine`: rows of float16, or of Q8_0, which has a float16 scale for 32 numbers."""
        return int(2 * 28 * 8 * 128 * self._rows * (34 / 32 if self._kv == "int8" else 2))


class Transformers:
    """transformers in bfloat16, eager, with its own cache."""

    def __init__(self, threads: int) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, dtype="bfloat16",
        )  # fmt: skip
        with torch.device("cpu"):
            torch.set_default_dtype(torch.bfloat16)
            self._model = Qwen3ForCausalLM(config).eval()
            torch.set_default_dtype(torch.float32)
        self._past: Any = None
        self._token: Any = None

    def _read(self, rows: int) -> float:
        import torch
        from transformers import DynamicCache

        start = time.perf_counter()
        # the cache goes in by position, since its name depends on the release
        self._past = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            out = self._model(torch.tensor([prompt(rows)]), None, None, self._past, use_cache=True, logits_to_keep=1)
        self._token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - start

    def prefill(self, rows: int) -> float:
        """See `Engine`."""
        return self._read(rows)

    def context(self, rows: int) -> None:
        """See `Engine`."""
        self._read(rows)

    def decode(self, tokens: int) -> float:
        """See `Engine`."""
        import torch

        start = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tokens):
                out = self._model(self._token, None, None, self._past, use_cache=True)
                self._token = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - start

    def kv_bytes(self) -> int:
        """See `Engine`: rows of bfloat16."""
        return 2 * 28 * 8 * 128 * 2 * self._past.get_seq_length()


class Stream:
    """Reads memory as fast as it comes: the limit of all others. A token is a pass over 512 MB."""

    def __init__(self, threads: int) -> None:
        import numba
        import numpy as np
        from stream_kernel import read

        numba.set_num_threads(threads)
        self._words, self._sums = np.ones(1 << 29, np.uint8), np.zeros((threads, 256), np.uint8)
        self._pass = lambda: read(self._words.ctypes.data, self._words.size // 256, self._sums.ctypes.data, threads)
        self._pass()  # compiles

    def prefill(self, rows: int) -> float:
        """Not asked for."""
        raise NotImplementedError

    def context(self, rows: int) -> None:
        """Nothing to do."""

    def decode(self, tokens: int) -> float:
        """See `Engine`."""
        start = time.perf_counter()
        for _ in range(tokens):
            self._pass()
        return time.perf_counter() - start

    def kv_bytes(self) -> int:
        """None."""
        return 0


def resident(kind: str) -> int:
    """Bytes of the resident set: "VmRSS" now, "VmHWM" at most so far."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(kind))
    return int(line.split()[1]) * 1024


def library_code() -> int:
    """Resident bytes of shared libraries: the system loads their pages when they are first touched, not on import."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            counted = len(words) > 5 and ".so" in Path(words[5]).name
        elif counted and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


LIBRARIES = {
    "llama.cpp": ("xllamacpp",),
    "transformers": ("torch", "transformers.models.qwen3.modeling_qwen3"),
    "stream": ("stream_kernel",),
    "numba": (
        "andes_sdk.assembling.extending", "andes_packing.modules", "andes_sdk.runtime.torch_backend",
        "andes_numba.backend", "andes_qwen3.model", "andes_qwen3.tokenizer", "andes_aimv2.model", "andes_mlp.model",
        "numba.np.ufunc.omppool",
    ),
}  # fmt: skip
"""What each engine imports before a model is loaded: it does not count as the engine's memory."""


def engine(kind: str, path: Path, threads: int, kv: str, context: int) -> Engine:
    """Load a model."""
    match kind:
        case "llama.cpp":
            return Llama(path, threads, kv, context)
        case "transformers":
            return Transformers(threads)
        case "stream":
            return Stream(threads)
        case _:
            return Ours(path, threads, kv)


def main() -> None:
    """Answer requests until the input ends."""
    kind, path, kv, threads, context = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not answer
    logging.disable(logging.WARNING)
    sys.path.insert(0, str(Path(__file__).parent))
    for library in LIBRARIES[kind]:
        importlib.import_module(library)
    if kind == "numba":
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()  # imports the rest of Numba, as its first function would
    base, code, began = resident("VmRSS"), library_code(), time.perf_counter()
    running = engine(kind, path, threads, kv, context)
    load = time.perf_counter() - began

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    answer(load=load)
    for line in sys.stdin:
        request = json.loads(line)
        match request["do"]:
            case "prefill":
                answer(seconds=running.prefill(request["rows"]))
            case "context":
                running.context(request["rows"])
                answer()
            case "decode":
                answer(seconds=running.decode(request["tokens"]))
            case "memory":
                answer(base=base, peak=resident("VmHWM"), kv=running.kv_bytes(), code=library_code() - code)


if __name__ == "__main__":
    main()
