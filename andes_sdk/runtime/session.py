"""`Session` on torch: rows in growable tensors, attention per sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk.runtime.base import BaseSession
from andes_sdk.runtime.keeping import Heads
from andes_sdk.runtime.kv import LayerStore
from andes_sdk.runtime.tree import Step
from andes_sdk.types import Compiled

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.runtime.lora import ModuleAdapters
    from andes_sdk.types import CachePolicy


class Opens(Compiled, Protocol):
    """What sessions use of `torch_backend.CompiledTorch`, which opens them."""

    model: VisionLanguageModel
    adapters: ModuleAdapters


class TorchSession(BaseSession):
    """A conversation in progress; see `andes_sdk.types.Session`."""

    def __init__(self, compiled: Opens, policy: CachePolicy, keeper: Mapping[str, Tensor] | None = None) -> None:
        model = compiled.model
        super().__init__(compiled, model, policy, adapters=compiled.adapters, taps=compiled.taps, keeper=keeper)
        spec = model.text
        self._layers = [LayerStore(spec.kv_heads, spec.head_dim, model.dtype, model.device) for _ in range(spec.layers)]

    @property
    def precision(self) -> str:
        """Of keys and values."""
        return str(self.model.dtype).removeprefix("torch.")

    def attend(self, step: Step, reading: bool, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store new rows of one layer, then attend: q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        store = self._layers[layer]
        store.append(k[0], v[0], step.positions)
        if self.keeping.wants_queries:
            self.keeping.note(layer, q[0], lambda: k[0], chain=reading)
        per_head = q.shape[1] // k.shape[1]
        out, start = [], 0
        for group in store.groups:
            keys, values, _ = group.view()
            stop = start + group.heads * per_head
            plain = step.visible is None and (q.shape[2] == 1 or q.shape[2] == group.count)
            out.append(
                scaled_dot_product_attention(
                    q[:, start:stop], keys[None], values[None], scale=scale, enable_gqa=per_head > 1,
                    attn_mask=None if plain else step.mask(group.count), is_causal=plain and q.shape[2] > 1,
                )
            )  # fmt: skip
            start = stop
        return torch.cat(out, dim=1).transpose(1, 2)

    # ------------------------------------------------------------ memory

    def reserve(self, rows: int) -> None:
        """Rows grow as they come."""

    def mark(self) -> list[list[int]]:
        """Rows per layer and group."""
        return [[group.count for group in layer.groups] for layer in self._layers]

    def reset(self, mark: list[list[int]]) -> None:
        """Drop what came since."""
        for layer, counts in zip(self._layers, mark, strict=True):
            for group, count in zip(layer.groups, counts, strict=True):
                group.count = count

    def counts(self) -> Sequence[Sequence[int]]:
        """Rows stored per layer and KV head."""
        return [layer.counts() for layer in self._layers]

    def kv_bytes(self) -> int:
        """Bytes of committed rows."""
        return sum(layer.bytes(self.pending) for layer in self._layers)

    def heads(self, layer: int) -> Heads:
        """Keys, values and positions of one layer."""
        keys, values, positions = zip(*self._layers[layer].heads(), strict=True)
        return keys, values, positions

    def keep_pending(self, rows: Sequence[int]) -> None:
        """Of the uncommitted rows keep these."""
        for store in self._layers:
            store.keep_tail(self.pending, rows)

    def evict(self, layer: int, kept: Sequence[Tensor]) -> None:
        """Of one layer keep per KV head these rows."""
        self._layers[layer].evict([k.to(self.model.device) for k in kept])

    def settle(self) -> None:
        """Nothing is left over: what was evicted is freed already."""

    def release(self) -> None:
        """Free the rows."""
        self._layers = []

    def dump(self) -> Mapping[str, Tensor]:
        """Per layer: keys, values and positions of all heads one after another, and rows per head."""
        state = {}
        for number, layer in enumerate(self._layers):
            for name, parts in zip(("keys", "values", "positions"), zip(*layer.heads(), strict=True), strict=True):
                state[f"{number}.{name}"] = torch.cat(parts)
            state[f"{number}.counts"] = torch.tensor(layer.counts())
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take rows that `dump` gave."""
        for number, layer in enumerate(self._layers):
            counts = state[f"{number}.counts"].tolist()
            parts = [
                state[f"{number}.{name}"].to(self.model.device).split(counts)
                for name in ("keys", "values", "positions")
            ]
            layer.fill(list(zip(*parts, strict=True)))
