"""`Session` on the compiled step: this plugin's memory and arithmetic under the core's bookkeeping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from andes_sdk.formats import LANES
from andes_sdk.runtime.base import BaseSession, Heads
from andes_sdk.runtime.tree import Step

from .few import FEW, forward_few
from .step import Store, forward, padded, padded_rows
from .store import KVStore, LazyHeads

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy, Inputs

    from .encoder import Vision
    from .lora import Adapters
    from .team import Team
    from .weights import PackedModel, Rotary

STRIP = 256
"""Rows of a prompt computed at a time: their int8 activations stay in the second-level cache."""


class Compiled(Protocol):
    """What sessions use of `backend.CompiledNumba`, which opens them."""

    model: VisionLanguageModel
    packed: PackedModel
    tags: tuple[Any, ...]
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

    def __init__(self, compiled: Compiled, policy: CachePolicy) -> None:
        super().__init__(compiled.model, policy, compiled.adapters)
        self._compiled = compiled
        self.store = KVStore(compiled.packed.sizes, compiled.kv)
        self._shown = [self._show(layer) for layer in range(compiled.packed.sizes.layers)]

    # ------------------------------------------------------------ one pass

    def read(self, embeds: Tensor) -> Tensor:
        """(T, D) -> logits (V,) of the last row."""
        self.store.reserve(len(embeds))  # may be refused: before any row is registered
        positions = self.step(len(embeds), None).positions
        for at in range(0, len(embeds), STRIP):
            rows = embeds[at : at + STRIP].float()
            step = Step(positions[at : at + STRIP], torch.ones(len(rows), at + len(rows), dtype=torch.bool).tril(at))
            logits, _ = run(self._compiled, [self], [step], rows, logits=int(at + STRIP >= len(embeds)))
        return logits[0]

    def grow(self, tokens: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """(T,) tokens -> logits (T, V), hidden (T, D)."""
        return run(self._compiled, [self], [step], self._compiled.embed(tokens))

    def receive(self, positions: np.ndarray, queries: Tensor | None) -> None:
        """Take note of new rows: (T,) positions, and queries (layers, Hq, T, d) if the policy wants them."""
        self.store.added(len(positions), positions)
        if queries is not None:
            for layer, new in enumerate(queries):
                self.note_queries(layer, new)

    def _encode(self, inputs: Inputs) -> Tensor | None:
        if inputs.patches is None:
            return None
        vision = self._compiled.vision
        with self.timed("vision"):
            features = vision.encode(inputs.patches, inputs.grids)
        with self.timed("projector"):
            return vision.project(features)

    # ------------------------------------------------------------ memory

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
        self.store = KVStore(self._compiled.packed.sizes, self._compiled.kv)

    def _show(self, layer: int) -> Heads:
        def part(number: int) -> LazyHeads:
            return LazyHeads(self._compiled.packed.sizes.kv_heads, lambda h: self.store.head(layer, h)[number])

        return part(0), part(1), part(2)


def run(
    compiled: Compiled,
    sessions: Sequence[NumbaSession],
    steps: Sequence[Step],
    embeds: Tensor,
    *,
    logits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One pass over the weights for new rows of several sessions, one after another in `embeds` (T, D).

    -> logits (T, V), or of so many last rows, and hidden (T, D).
    """
    sizes, count = compiled.packed.sizes, len(embeds)
    first = 0 if logits is None else count - logits
    x = np.zeros((padded_rows(count), padded(sizes.width)), np.float32)
    x[:count, : sizes.width] = embeds.numpy()
    positions = np.concatenate([step.positions.numpy() for step in steps])
    window = any(session.policy.window for session in sessions)
    queries = np.zeros((sizes.layers, count, sizes.q_heads * sizes.head) if window else (1, 1, 0), np.float32)
    out = np.empty((padded_rows(count - first), -(-sizes.vocab // LANES) * LANES), np.float32)
    arguments = _places(sessions, steps), x, count, *compiled.rotary.at(positions), queries, first, out
    lora = compiled.adapters.of([s.adapter for s in sessions], [len(step.positions) for step in steps])
    weights, threads = compiled.packed.weights, compiled.threads
    with compiled.team.at_work():
        if count < FEW and not len(lora.rows):
            forward_few(*compiled.tags, sizes, weights, *arguments, threads)
        else:
            forward(*compiled.tags, sizes, weights, lora, *arguments, threads)
    shaped = torch.from_numpy(queries).view(sizes.layers, count, sizes.q_heads, sizes.head) if window else None
    start = 0
    for session, step in zip(sessions, steps, strict=True):
        stop = start + len(step.positions)
        session.receive(positions[start:stop], None if shaped is None else shaped[:, start:stop].transpose(1, 2))
        start = stop
    return torch.from_numpy(out)[: count - first, : sizes.vocab], torch.from_numpy(x)[:count, : sizes.width]


def _places(sessions: Sequence[NumbaSession], steps: Sequence[Step]) -> Store:
    """Where new rows of these sessions go, and what they see."""
    lengths = [len(step.positions) for step in steps]
    stores = [session.store for session in sessions]
    for store, length in zip(stores, lengths, strict=True):
        store.reserve(length)
    marks = [
        np.tri(n) if step.visible is None else step.visible.numpy() for n, step in zip(lengths, steps, strict=True)
    ]
    visible = np.zeros((sum(lengths), max(mark.shape[1] for mark in marks)), np.uint8)
    start = 0
    for length, mark in zip(lengths, marks, strict=True):
        visible[start : start + length, : mark.shape[1]] = mark
        start += length
    # a single session, which waits for every microsecond, needs no copies
    alone = stores[0] if len(stores) == 1 else None
    return Store(
        addresses=np.array([store.addresses for store in stores], np.int64),
        starts=np.stack([store.starts for store in stores]) if alone is None else alone.starts[None],
        counts=np.stack([store.counts for store in stores]) if alone is None else alone.counts[None],
        pending=np.array([mark.shape[1] - len(mark) for mark in marks], np.int64),
        owners=np.repeat(np.arange(len(stores)), lengths),
        ranks=np.concatenate([np.arange(n) for n in lengths]),
        visible=visible,
    )
