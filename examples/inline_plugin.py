"""A plugin without a package: a cache policy written in a script and passed as an object.

    python examples/inline_plugin.py

It keeps the first rows and the most recent ones (StreamingLLM, Xiao et al. 2023). The memory it saves is real:
evicted rows are gone. To publish it, `andes new streaming --kind cache-policy` and move the class over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import Pipeline, hookimpl
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.types import Cache, Layer

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


@frozen
class StreamingPolicy:
    """Keeps `sinks` first rows and as many recent ones as fit into `rows`, in each of `heads` heads.

    It needs no memory for a session, so it is its own keeper.
    """

    rows: int
    sinks: int
    heads: int
    name: str = "streaming"
    window: int = 0
    taps: Sequence[int] = ()
    replays: bool = False

    def budget(self, seen: int) -> int:
        return min(seen, self.rows) * self.heads

    def open(self, state: Mapping[str, torch.Tensor] | None = None) -> StreamingPolicy:
        return self

    def state(self) -> Mapping[str, torch.Tensor]:
        return {}

    def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor | None:
        return None

    def due(self, seen: int, held: int, reading: bool) -> bool:
        return held > self.rows * self.heads

    def keep(self, cache: Cache) -> Sequence[Sequence[torch.Tensor] | None]:
        return [self.choose(layer) for layer in cache.layers]

    def choose(self, layer: Layer) -> Sequence[torch.Tensor] | None:
        have = len(layer.positions[0])
        if have <= self.rows:
            return None
        recent = torch.arange(have - (self.rows - self.sinks), have)
        return [torch.cat([torch.arange(self.sinks), recent])] * len(layer.positions)


@frozen(eq=False, kw_only=True)
class Streaming:
    """Attention sinks and a sliding window. Shortest use: Pipeline.from_plugins([..., Streaming(rows=64)])."""

    contract = "1.1"
    rows: int = field(default=64, validator=ge(8), metadata={"help": "rows per head to keep"})
    sinks: int = field(default=4, validator=ge(1), metadata={"help": "of these, rows from the start"})

    @hookimpl
    def andes_cache_policy(self, model: VisionLanguageModel) -> StreamingPolicy:
        return StreamingPolicy(self.rows, self.sinks, model.text.layers * model.text.kv_heads)


def main() -> None:
    model = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    question = "word " * 200
    options = GenerationOptions(max_tokens=40)
    for plugins in (model, [*model, Streaming(rows=64)]):
        pipeline = Pipeline.from_plugins(plugins)
        answer = pipeline.generate(question, options)
        policy = next(row.value for row in pipeline.explain().rows if row.part == "cache_policy")
        print(f"{policy:45} {answer.prompt_tokens} prompt rows, KV at the end {answer.kv_bytes:,} bytes")


if __name__ == "__main__":
    main()
