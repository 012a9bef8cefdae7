"""`Session` on the compiled step: this plugin's memory and arithmetic under the core's bookkeeping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from andes_sdk.runtime.base import BaseSession
from andes_sdk.runtime.keeping import Heads

from .store import KVStore, LazyHeads

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy, Media

    from .encoder import Vision
    from .lora import Adapters
    from .team import Team
    from .weights import PackedModel, Rotary


class Compiled(Protocol):
    """What sessions use of `backend.CompiledNumba`, which opens them."""

    model: VisionLanguageModel
    packed: PackedModel
    tags: tuple[Any, ...]
    taps: Sequence[int]
    kv: str
    team: Team
    vision: Vision

    @property
    def threads(self) -> int:
        """Threads of a pass."""

    @property
    def adapters(self) -> Adapters:
        """Adapters by name."""

    @property
    def rotary(self) -> Rotary:
        """Tables of positions."""

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D) float32."""


class NumbaSession(BaseSession):
    """A conversation in progress; see `andes_sdk.types.Session`."""

    def __init__(self, compiled: Compiled, policy: CachePolicy, keeper: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(
            compiled, compiled.model, policy, adapters=compiled.adapters, taps=compiled.taps, keeper=keeper
        )
        self.store = KVStore(compiled.packed.sizes, compiled.kv)
        self._shown = [self._show(layer) for layer in range(compiled.packed.sizes.layers)]

    @property
    def precision(self) -> str:
        """Of keys and values."""
        return self.store.kv

    def receive(self, positions: np.ndarray, queries: Tensor | None, *, reading: bool) -> None:
        """Take note of new rows: (T,) positions, and queries (layers, Hq, T, d) if the policy wants them."""
        count = len(positions)
        self.store.added(count, positions)
        if queries is None:
            return
        for layer, new in enumerate(queries):
            self.keeping.note(layer, new, lambda n=layer: self._last_keys(n, count), chain=reading)

    def _last_keys(self, layer: int, count: int) -> Tensor:
        return torch.stack([keys[len(keys) - count :] for keys in self.heads(layer)[0]])

    def see(self, pictures: Media) -> Tensor:
        """Rows of pictures (M, D)."""
        vision = self.compiled.vision
        with self.timed("vision"):
            features = vision.encode(pictures.data, pictures.sizes)
        with self.timed("projector"):
            return vision.project(features)

    # ------------------------------------------------------------ memory

    def reserve(self, rows: int) -> None:
        """Make room for new rows. May raise SessionError; nothing has changed then."""
        self.store.reserve(rows)

    def mark(self) -> np.ndarray:
        """Rows per layer and head."""
        return self.store.counts.copy()

    def reset(self, mark: np.ndarray) -> None:
        """Drop what came since."""
        self.store.counts[:] = mark

    def counts(self) -> Sequence[Sequence[int]]:
        """Rows stored per layer and KV head."""
        counts: list[list[int]] = self.store.counts.tolist()
        return counts

    def kv_bytes(self) -> int:
        """Bytes of committed rows."""
        return self.store.nbytes(self.pending)

    def heads(self, layer: int) -> Heads:
        """Keys, values and positions of one layer, read when a policy looks at them."""
        return self._shown[layer]

    def keep_pending(self, rows: Sequence[int]) -> None:
        """Of the uncommitted rows keep these."""
        self.store.keep_tail(self.pending, rows)

    def evict(self, layer: int, kept: Sequence[Tensor]) -> None:
        """Of one layer keep per KV head these rows."""
        self.store.evict(layer, kept)

    def settle(self) -> None:
        """Give memory back once less than half of it is in use."""
        self.store.shrink()

    def release(self) -> None:
        """Free the rows."""
        self.store = KVStore(self.compiled.packed.sizes, self.compiled.kv)

    def dump(self) -> Mapping[str, Tensor]:
        """Rows of each part one run after another, and rows per run."""
        return self.store.dump()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take rows that `dump` gave."""
        self.store.load(state)

    def _show(self, layer: int) -> Heads:
        def part(number: int) -> LazyHeads:
            return LazyHeads(self.compiled.packed.sizes.kv_heads, lambda h: self.store.head(layer, h)[number])

        return part(0), part(1), part(2)
