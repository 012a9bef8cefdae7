"""`Session` on torch: prefill in chunks, extend by a chain or a tree, commit, roll back, evict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk.errors import SessionError
from andes_sdk.runtime.kv import LayerStore
from andes_sdk.types import Inputs, Layer, SessionStats

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy

CHUNK = 1024
"""Rows of a prompt read at a time; eviction happens in between, which bounds the peak."""


@frozen(eq=False)
class Step:
    """Rows about to be added: their positions, and which of the pending rows each may look at.

    Attributes:
        positions: (T,) absolute positions.
        visible: (T, pending + T) bool over uncommitted rows, or None for a plain chain after committed rows only.
    """

    positions: Tensor
    visible: Tensor | None


class TorchSession:
    """A conversation in progress; see `andes_sdk.types.Session`."""

    def __init__(self, model: VisionLanguageModel, policy: CachePolicy) -> None:
        spec = model.text
        self.model, self.policy = model, policy
        self.length = 0
        self._layers = [LayerStore(spec.kv_heads, spec.head_dim, model.dtype, model.device) for _ in range(spec.layers)]
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._queries: list[Tensor | None] = [None] * spec.layers
        self._pending_queries: list[list[Tensor]] = [[] for _ in range(spec.layers)]
        self._image = torch.zeros(0, dtype=torch.bool, device=model.device)
        self._seconds = dict.fromkeys(("preprocess", "vision", "projector", "prefill", "decode"), 0.0)
        self._accepted = self.proposed = 0
        self._closed = False

    # ------------------------------------------------------------ the contract

    @property
    def adapter(self) -> str | None:
        """Name of the active LoRA adapter."""
        return None

    @adapter.setter
    def adapter(self, name: str | None) -> None:
        if name is not None:
            raise SessionError(f"no adapter {name!r}: this model was compiled without adapters", fix="set None")

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent; uncommitted rows do not count."""
        pending = len(self._parents)
        return SessionStats(
            kv_bytes=sum(layer.bytes(pending) for layer in self._layers),
            rows=tuple(tuple(n - pending for n in layer.counts()) for layer in self._layers),
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
        ids = inputs.ids.to(self.model.device)
        embeds = self.model.embed(ids, self._encode(inputs))
        image = ids == self.model.tokenizer.image_token
        hidden = embeds
        with self.timed("prefill"):
            for start in range(0, len(ids), CHUNK):
                chunk = embeds[start : start + CHUNK]
                hidden = self._forward(chunk, self.step(len(chunk), None))
                self._image = torch.cat([self._image, image[start : start + CHUNK]])
                self._keep(list(range(len(chunk))))
            logits: Tensor = self.model.logits(hidden[-1:])[0]
        return logits

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Add uncommitted rows, a chain or a tree -> logits (T, V), hidden (T, D).

        Raises:
            SessionError: no tokens, parents that point forward, or more rows than the model has positions.
        """
        self.check(len(tokens), pending=True)
        with self.timed("decode"):
            ids = torch.tensor(list(tokens), device=self.model.device)
            hidden = self._forward(self.model.llm.embed(ids), self.step(len(tokens), parents))
            self.proposed += len(tokens)
            return self.model.logits(hidden), hidden

    @torch.inference_mode()
    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Keep these uncommitted rows, which must be one path from the root; drop the others.

        Raises:
            SessionError: rows that are no path.
        """
        pending = len(self._parents)
        rows = list(range(pending)) if rows is None else list(rows)
        previous = -1
        for row in rows:
            if not 0 <= row < pending or self._parents[row] != previous:
                raise SessionError(
                    f"rows {rows} are no path from the last committed row", why=f"parents: {self._parents}"
                )
            previous = row
        new = torch.zeros(len(rows), dtype=torch.bool, device=self.model.device)
        self._image = torch.cat([self._image, new])
        self._accepted += len(rows)
        self._keep(rows)

    def rollback(self) -> None:
        """Drop every uncommitted row."""
        self._drop([])

    def close(self) -> None:
        """Free the KV store."""
        self._layers, self._queries, self._pending_queries = [], [], []
        self._closed = True

    # ------------------------------------------------------------ one forward pass

    def step(self, rows: int, parents: Sequence[int] | None) -> Step:
        """Register `rows` new uncommitted rows -> their positions and mutual visibility."""
        first = len(self._parents)
        chain = parents is None
        if parents is None:
            parents = [first - 1 + i if first + i else -1 for i in range(rows)]
        if len(parents) != rows or any(not -1 <= p < first + i for i, p in enumerate(parents)):
            raise SessionError(f"parents {list(parents)} do not fit {rows} rows after {first} pending ones")
        for parent in parents:
            self._parents.append(parent)
            self._depths.append(0 if parent < 0 else self._depths[parent] + 1)
        positions = torch.tensor(self._depths[first:], device=self.model.device) + self.length
        if chain and first == 0:
            return Step(positions, None)
        visible = torch.zeros(rows, first + rows, dtype=torch.bool)
        for i in range(rows):
            row = first + i
            while row >= 0:
                visible[i, row] = True
                row = self._parents[row]
        return Step(positions, visible.to(self.model.device))

    def _forward(self, embeds: Tensor, step: Step) -> Tensor:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            return self.attend(step, layer, q, k, v, scale)

        return self.model.hidden_states(embeds, step.positions, attend)

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store new rows of one layer, then attend: q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""
        store = self._layers[layer]
        store.append(k[0], v[0], step.positions)
        if self.policy.window:
            self._pending_queries[layer].append(q[0])
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

    def _keep(self, rows: list[int]) -> None:
        self._drop(rows)
        self.length += len(rows)
        for index, store in enumerate(self._layers):
            self._evict(index, store)

    def _drop(self, rows: list[int]) -> None:
        for index, store in enumerate(self._layers):
            store.keep_tail(len(self._parents), rows)
            if self._pending_queries[index]:
                new = torch.cat(self._pending_queries[index], dim=1)[:, rows]
                old = self._queries[index]
                window = new if old is None else torch.cat([old, new], dim=1)
                self._queries[index] = window[:, -self.policy.window :].clone()
                self._pending_queries[index] = []
        self._parents, self._depths = [], []

    def _evict(self, index: int, store: LayerStore) -> None:
        heads = store.heads()
        queries = self._queries[index]
        if queries is None:
            queries = torch.empty(self.model.text.query_heads, 0, self.model.text.head_dim, device=self.model.device)
        keys, values, positions = zip(*heads, strict=True)
        kept = self.policy.keep(Layer(index, keys, values, positions, queries, self._image))
        if kept is not None:
            self._check_kept(kept, [len(k) for k in keys])
            store.evict([k.to(self.model.device) for k in kept])
        budget = self.policy.budget(self.length)
        if budget is not None and max(store.counts()) > budget:
            raise SessionError(
                f"layer {index} holds {max(store.counts())} rows per head, its budget is {budget}",
                who=f"cache policy {self.policy.name!r}",
                fix="`keep` must return at most `budget(rows)` indices per head",
            )

    def _check_kept(self, kept: Sequence[Tensor], counts: Sequence[int]) -> None:
        fits = len(kept) == len(counts) and all(
            k.ndim == 1 and bool((k[1:] > k[:-1]).all()) and (not len(k) or (int(k[0]) >= 0 and int(k[-1]) < n))
            for k, n in zip(kept, counts, strict=False)
        )
        if not fits:
            raise SessionError(
                "kept rows are not ascending indices of stored rows, one list per KV head",
                who=f"cache policy {self.policy.name!r}",
                fix="return one int64 tensor of ascending, unique indices per head",
            )

    # ------------------------------------------------------------ small parts

    def _encode(self, inputs: Inputs) -> Tensor | None:
        if inputs.patches is None:
            return None
        device, dtype = self.model.device, self.model.dtype
        with self.timed("vision"):
            features = self.model.vision_encoder(inputs.patches.to(device, dtype), inputs.grids)
        with self.timed("projector"):
            rows: Tensor = self.model.mlp(features)
        return rows

    def check(self, rows: int, *, pending: bool) -> None:
        """Refuse `rows` more rows if the session is closed, they do not fit, or uncommitted ones are in the way."""
        if self._closed:
            raise SessionError("the session is closed", fix="open another with pipe.session()")
        if not rows:
            raise SessionError("there are no tokens to read", fix="give at least one")
        if self._parents and not pending:
            raise SessionError(f"{len(self._parents)} rows are not committed", fix="call commit() or rollback() first")
        limit = self.model.text.max_positions
        if self.length + len(self._parents) + rows > limit:
            raise SessionError(
                f"{self.length + len(self._parents) + rows} rows exceed the model's {limit} positions",
                fix="shorten the conversation, or lower max_tokens",
            )

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part of `stats.seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)
            self._seconds[part] += time.perf_counter() - start
