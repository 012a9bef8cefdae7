"""`Session` on torch: rows in growable tensors, attention per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk.runtime.base import BaseSession, Heads
from andes_sdk.runtime.kv import LayerStore
from andes_sdk.runtime.lora import ModuleAdapters
from andes_sdk.runtime.tree import Step

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy


class TorchSession(BaseSession):
    """A conversation in progress; see `andes_sdk.types.Session`."""

    def __init__(self, model: VisionLanguageModel, policy: CachePolicy, adapters: ModuleAdapters | None = None) -> None:
        self.lora = ModuleAdapters(model) if adapters is None else adapters
        super().__init__(model, policy, self.lora)
        spec = model.text
        self._layers = [LayerStore(spec.kv_heads, spec.head_dim, model.dtype, model.device) for _ in range(spec.layers)]

    # ------------------------------------------------------------ one pass

    def read(self, embeds: Tensor) -> Tensor:
        """(T, D) -> logits (V,) of the last row."""
        hidden = self._forward(embeds, self.step(len(embeds), None))
        logits: Tensor = self.model.logits(hidden[-1:])[0]
        return logits

    def grow(self, tokens: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """(T,) tokens -> logits (T, V), hidden (T, D)."""
        hidden = self._forward(self.model.llm.embed(tokens), step)
        return self.model.logits(hidden), hidden

    def _forward(self, embeds: Tensor, step: Step) -> Tensor:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            return self.attend(step, layer, q, k, v, scale)

        with self.lora.rows([(self.adapter, len(embeds))]):
            return self.model.hidden_states(embeds, step.positions, attend)

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store new rows of one layer, then attend: q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        store = self._layers[layer]
        store.append(k[0], v[0], step.positions)
        self.note_queries(layer, q[0])
        per_head = q.shape[1] // k.shape[1]
        out, start = [], 0
        for group in store.groups:
            keys, values, _ = group.view()
            stop = start + group.heads * per_head
            mask, causal = self._mask(step, q.shape[2], group.count)
            out.append(
                scaled_dot_product_attention(
                    q[:, start:stop], keys[None], values[None], attn_mask=mask, is_causal=causal, scale=scale,
                    enable_gqa=per_head > 1,
                )
            )  # fmt: skip
            start = stop
        return torch.cat(out, dim=1).transpose(1, 2)

    def _mask(self, step: Step, rows: int, total: int) -> tuple[Tensor | None, bool]:
        """(rows, total) bool mask over stored rows, or no mask; and whether plain causality says it all."""
        if step.visible is None and (rows == 1 or rows == total):
            return None, rows > 1
        if step.visible is None:
            new = torch.ones(rows, rows, dtype=torch.bool, device=self.model.device).tril()
        else:
            new = step.visible
        old = torch.ones(rows, total - new.shape[1], dtype=torch.bool, device=self.model.device)
        return torch.cat([old, new], dim=1), False

    # ------------------------------------------------------------ memory

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
