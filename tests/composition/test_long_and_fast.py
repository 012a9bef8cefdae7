"""Cache policies, decoders, backends, adapters and pictures together: each combination keeps what it promises.

Text is that of plain decoding under the same policy, and so are the rows that stay. The budget is kept, and an adapter
changes what is said.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from attrs import evolve
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.runtime.engine import Conversation
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.testing.weights import randomised
from andes_sdk.types import Adapter, LowRank

pytest.importorskip("andes_okv", reason="pip install andes-okv")
pytest.importorskip("andes_speculative", reason="pip install andes-speculative")

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
# formats as in numba's own tests, so that their machine code is compiled once
BACKENDS: dict[str, list[Any]] = {
    "torch": [],
    "w4": [{"numba": {"format": "w4_g32"}}],
    "sub2": [{"numba": {"format": "nm14_w4", "head": "w8", "kv": "int8"}}],
}
SMALL = {"least": 0, "sinks": 2, "recent": 8, "slack": 6, "chunk": 32}
POLICIES: dict[str, list[Any]] = {
    "full": [],
    "snapkv": [{"okv": {"scorer": "snapkv", **SMALL}}],
    "kvzip+": [{"okv": {"scorer": "kvzip+", "budget": "layer", **SMALL}}],
}
DECODERS: dict[str, list[Any]] = {"plain": [], "suffix": [{"speculative": {"adapt": False, "rows": 9, "width": 3}}]}
SHOWN = {"text": 0, "picture": 1, "two pictures": 2}
WORDS = "seven green boats and seven green birds and seven green boats and seven green "


@cache
def pipeline(backend: str, policy: str, decoder: str) -> Pipeline:
    plugins = [*MODEL, *BACKENDS[backend], *POLICIES[policy], *DECODERS[decoder]]
    pipe = Pipeline.from_plugins(plugins, backend="torch" if backend == "torch" else "numba", seed=1)
    randomised(pipe.model.language_model)
    random, layers = torch.Generator().manual_seed(2), {}
    for name, (_, role) in pipe.model.language_model.linears().items():
        if role in "qv":
            rows, columns = pipe.model.language_model.get_submodule(name).weight.shape  # type: ignore[operator]
            a, b = (torch.randn(*shape, generator=random) for shape in ((4, columns), (rows, 4)))
            layers[name] = LowRank(a=a, b=b, scale=0.3)
    pipe.compiled.add_adapter(Adapter(name="own", layers=layers))
    return pipe


def asked(pictures: int, n: int) -> list[dict[str, Any]]:
    images = [Image.new("RGB", (56, 84), (40 * (n + i + 1), 90, 200 - 50 * i)) for i in range(pictures)]
    content = [*({"type": "image", "image": i} for i in images), {"type": "text", "text": WORDS * (2 + n % 2)}]
    return [{"role": "user", "content": content}]


def told(pipe: Pipeline, pictures: int, adapter: str | None) -> list[Conversation]:
    """Three conversations that share passes, two of them sampled."""
    engine = evolve(pipe.engine(), ends=())
    made = [
        engine.join(
            pipe.prepare(asked(pictures, n)),
            GenerationOptions(max_tokens=40, temperature=0.7 * (n > 0), seed=n, adapter=adapter),
        )
        for n in range(3)
    ]
    engine.run()
    for one in made:
        assert one.error is None, one.error
    return made


ALWAYS = {("text", None), ("picture", "own"), ("two pictures", None)}
CELLS = [
    pytest.param(*cell, id="-".join(map(str, cell)), marks=() if cell[2:] in ALWAYS else pytest.mark.slow)
    for cell in product(BACKENDS, POLICIES, SHOWN, (None, "own"))
]
"""Every combination; half of them in the longer checks."""


@pytest.mark.parametrize(("backend", "policy", "shown", "adapter"), CELLS)
def test_speculation_says_and_holds_what_plain_decoding_does(
    backend: str, policy: str, shown: str, adapter: str | None
) -> None:
    plain, fast = (told(pipeline(backend, policy, d), SHOWN[shown], adapter) for d in DECODERS)
    for one, other in zip(plain, fast, strict=True):
        assert list(one.tokens) == list(other.tokens)
        assert len(one.tokens) == 40
        before, after = one.session.stats, other.session.stats
        assert (before.rows, before.kv_bytes) == (after.rows, after.kv_bytes)
        assert after.proposed > before.proposed  # something was guessed
    if policy != "full":
        whole = told(pipeline(backend, "full", "plain"), SHOWN[shown], adapter)
        for one, all_of_it in zip(plain, whole, strict=True):
            spec = pipeline(backend, policy, "plain").model.text
            most = max(SMALL["sinks"] + SMALL["recent"], int(0.25 * one.session.length)) + SMALL["slack"]
            held = sum(sum(layer) for layer in one.session.stats.rows)
            assert held <= spec.layers * spec.kv_heads * most
            assert one.session.stats.kv_bytes < all_of_it.session.stats.kv_bytes
            all_of_it.session.close()
    if adapter is not None:
        without = told(pipeline(backend, policy, "plain"), SHOWN[shown], None)
        assert [list(c.tokens) for c in without] != [list(c.tokens) for c in plain]
    for one in (*plain, *fast):
        one.session.close()
