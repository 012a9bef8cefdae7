"""`Session` on the compiled step. Trees, checks and bookkeeping are those of the torch session; memory and arithmetic
are this plugin's. The vision encoder, the projector and the embedding table stay on torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numba
import numpy as np
import torch
from torch import Tensor

from andes_sdk.errors import SessionError
from andes_sdk.formats import LANES
from andes_sdk.runtime.session import CHUNK, Step, TorchSession
from andes_sdk.types import Inputs, Layer, SessionStats

from .step import Store, forward, padded, padded_rows
from .store import KVStore, LazyHeads

if TYPE_CHECKING:
    from andes_sdk.types import CachePolicy

    from .backend import CompiledNumba

STRIP = 256
"""Rows of a prompt computed at a time: their int8 activations stay in the second-level cache."""


class NumbaSession(TorchSession):
    """A conversation in progress; see `andes_sdk.types.Session`."""

    def __init__(self, compiled: CompiledNumba, policy: CachePolicy) -> None:
        super().__init__(compiled.model, policy)
        self._compiled = compiled
        self._layers = []
        self._store = KVStore(compiled.packed.sizes, compiled.kv)
        self._shown = [self._show(layer) for layer in range(compiled.packed.sizes.layers)]

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent; uncommitted rows do not count."""
        pending = len(self._parents)
        return SessionStats(
            kv_bytes=self._store.nbytes(pending),
            rows=tuple(tuple(row) for row in (self._store.counts - pending).tolist()),
            committed=self.length,
            accepted=self._accepted,
            proposed=self.proposed,
            seconds=dict(self._seconds),
        )

    @torch.inference_mode()
    def prefill(self, inputs: Inputs) -> Tensor:
        """Read and commit a prompt -> logits (V,) of its last row. A second prompt continues the first.

        Raises:
            SessionError: an empty prompt, uncommitted rows, or more rows than the model has positions.
        """
        self.check(len(inputs.ids), pending=False)
        self._seconds["preprocess"] += inputs.seconds
        embeds = self.model.embed(inputs.ids, self._encode(inputs)).float()
        image = inputs.ids == self.model.tokenizer.image_token
        with self.timed("prefill"):
            for start in range(0, len(embeds), CHUNK):
                stop = min(start + CHUNK, len(embeds))
                for at in range(start, stop, STRIP):
                    rows = embeds[at : min(at + STRIP, stop)]
                    logits, _ = self._run(rows, self.step(len(rows), None), last=True)
                self._image = torch.cat([self._image, image[start:stop]])
                self._keep(list(range(stop - start)))
        return logits[0]

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Add uncommitted rows, a chain or a tree -> logits (T, V), hidden (T, D).

        Raises:
            SessionError: no tokens, parents that point forward, or more rows than the model has positions.
        """
        self.check(len(tokens), pending=True)
        with self.timed("decode"):
            embeds = self.model.llm.embed(torch.tensor(list(tokens))).float()
            out = self._run(embeds, self.step(len(tokens), parents))
        self.proposed += len(tokens)
        return out

    def close(self) -> None:
        """Free the KV store."""
        super().close()
        self._store = KVStore(self._compiled.packed.sizes, self._compiled.kv)

    # ------------------------------------------------------------ one pass

    def _run(self, embeds: Tensor, step: Step, *, last: bool = False) -> tuple[Tensor, Tensor]:
        """(T, D) embeddings -> logits (T, V), or (1, V) of the last row, and hidden (T, D)."""
        return run(self._compiled, [self], [step], embeds, last)

    def receive(self, positions: np.ndarray, queries: Tensor | None) -> None:
        """Take note of new rows: (T,) positions, and queries (layers, Hq, T, d) if the policy wants them."""
        self._store.added(len(positions), positions)
        if queries is not None and self.policy.window:
            for pending, new in zip(self._pending_queries, queries, strict=True):
                pending.append(new)

    @property
    def pending(self) -> int:
        """Uncommitted rows."""
        return len(self._parents)

    # ------------------------------------------------------------ memory

    def _keep(self, rows: list[int]) -> None:
        super()._keep(rows)
        for layer in range(self._compiled.packed.sizes.layers):
            self._evict_layer(layer)
        self._store.shrink()

    def _drop(self, rows: list[int]) -> None:
        self._store.keep_tail(len(self._parents), rows)
        for index, new in enumerate(self._pending_queries):
            if new:
                window = torch.cat([*([] if (old := self._queries[index]) is None else [old]), *new], dim=1)
                keep = window.shape[1] - len(self._parents) + np.array(rows, np.int64)
                past = torch.arange(window.shape[1] - len(self._parents))
                chosen = torch.cat([past, torch.from_numpy(keep)])[-self.policy.window :]
                self._queries[index] = window[:, chosen]
                self._pending_queries[index] = []
        self._parents, self._depths = [], []

    def _show(self, layer: int) -> tuple[LazyHeads, ...]:
        """Keys, values and positions of a layer's heads, read when a policy looks at them."""

        def part(number: int) -> LazyHeads:
            return LazyHeads(self._compiled.packed.sizes.kv_heads, lambda h: self._store.head(layer, h)[number])

        return part(0), part(1), part(2)

    def _evict_layer(self, index: int) -> None:
        store, queries = self._store, self._queries[index]
        if queries is None:
            queries = torch.empty(self.model.text.query_heads, 0, self.model.text.head_dim)
        kept = self.policy.keep(Layer(index, *self._shown[index], queries, self._image))
        if kept is not None:
            self._check_kept(kept, store.counts[index].tolist())
            store.evict(index, kept)
        budget = self.policy.budget(self.length)
        if budget is not None and int(store.counts[index].max()) > budget:
            raise SessionError(
                f"layer {index} holds {int(store.counts[index].max())} rows per head, its budget is {budget}",
                who=f"cache policy {self.policy.name!r}",
                fix="`keep` must return at most `budget(rows)` indices per head",
            )


def run(
    compiled: CompiledNumba,
    sessions: Sequence[NumbaSession],
    steps: Sequence[Step],
    embeds: Tensor,
    last: bool,
) -> tuple[Tensor, Tensor]:
    """One pass over the weights for new rows of several sessions, one after another in `embeds` (T, D).

    -> logits (T, V), or (1, V) of the last row, and hidden (T, D).
    """
    sizes, count = compiled.packed.sizes, len(embeds)
    first = count - 1 if last else 0
    x = np.zeros((padded_rows(count), padded(sizes.width)), np.float32)
    x[:count, : sizes.width] = embeds.numpy()
    positions = np.concatenate([step.positions.numpy() for step in steps])
    window = any(session.policy.window for session in sessions)
    queries = np.zeros((sizes.layers, count, sizes.q_heads * sizes.head) if window else (1, 1, 0), np.float32)
    logits = np.empty((padded_rows(count - first), -(-sizes.vocab // LANES) * LANES), np.float32)
    arguments = _places(sessions, steps), x, count, *compiled.rotary.at(positions), queries, first, logits
    before = numba.get_num_threads()
    numba.set_num_threads(compiled.threads)
    try:
        forward(*compiled.tags, sizes, compiled.packed.weights, *arguments, compiled.threads)
    finally:
        numba.set_num_threads(before)  # other users of Numba in this process have their own number
    shaped = torch.from_numpy(queries).view(sizes.layers, count, sizes.q_heads, sizes.head) if window else None
    start = 0
    for session, step in zip(sessions, steps, strict=True):
        stop = start + len(step.positions)
        session.receive(positions[start:stop], None if shaped is None else shaped[:, start:stop].transpose(1, 2))
        start = stop
    return torch.from_numpy(logits)[: count - first, : sizes.vocab], torch.from_numpy(x)[:count, : sizes.width]


def _places(sessions: Sequence[NumbaSession], steps: Sequence[Step]) -> Store:
    """Where new rows of these sessions go, and what they see."""
    lengths = [len(step.positions) for step in steps]
    stores = [session._store for session in sessions]
    for store, length in zip(stores, lengths, strict=True):
        store.reserve(length)
    visible = np.zeros((sum(lengths), max(session.pending for session in sessions)), np.uint8)
    start = 0
    for length, step in zip(lengths, steps, strict=True):
        mark = np.tri(length, dtype=np.uint8) if step.visible is None else step.visible.numpy()
        visible[start : start + length, : mark.shape[1]] = mark
        start += length
    return Store(
        addresses=np.array([store.addresses for store in stores], np.int64),
        starts=np.stack([store.starts for store in stores]),
        counts=np.stack([store.counts for store in stores]),
        pending=np.array([session.pending - n for session, n in zip(sessions, lengths, strict=True)], np.int64),
        owners=np.repeat(np.arange(len(stores)), lengths),
        ranks=np.concatenate([np.arange(n) for n in lengths]),
        visible=visible,
    )
