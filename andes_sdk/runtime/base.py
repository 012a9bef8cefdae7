"""What every session does alike: trees of rows, checks, counts and times, and when the cache policy is asked.

A backend's session subclasses `BaseSession` and brings memory and arithmetic: nine methods, all of them below
"a subclass says".
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from andes_sdk.config import suggestion
from andes_sdk.errors import SessionError
from andes_sdk.runtime.policy import KeepAll, check_budget, check_kept
from andes_sdk.runtime.tree import Step, Tree
from andes_sdk.types import Inputs, Layer, SessionStats

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy

CHUNK = 1024
"""Rows of a prompt read at a time; eviction happens in between, which bounds the peak."""

Heads = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]
"""Per KV head its keys (n, d), values (n, d) and positions (n,)."""


class BaseSession(ABC):
    """A conversation in progress; see `andes_sdk.types.Session`.

    Attributes:
        model: what computes embeddings and image rows. policy: decides which KV rows stay.
        length: committed rows seen so far.
        proposed: rows that `extend` was asked for.
    """

    def __init__(self, model: VisionLanguageModel, policy: CachePolicy, adapters: Collection[str] = ()) -> None:
        spec = model.text
        self.model, self.policy = model, policy
        # asked for with every token; a model answers from its configuration, which takes microseconds each time
        self._limit, self._vocabulary, self._device = spec.max_positions, spec.vocab_size, model.device
        self._unseen = torch.empty(spec.query_heads, 0, spec.head_dim, device=model.device)
        self.length = self.proposed = 0
        self._adapters = adapters  # the compiled model's own collection: it may grow
        self._adapter: str | None = None
        self._tree = Tree()
        self._windows: list[Tensor | None] = [None] * spec.layers
        self._queries: list[list[Tensor]] = [[] for _ in range(spec.layers)]
        self._image = torch.zeros(0, dtype=torch.bool, device=model.device)
        self._seconds = dict.fromkeys(("preprocess", "vision", "projector", "prefill", "decode"), 0.0)
        self._accepted = 0
        self._passing = self._closed = False

    # ------------------------------------------------------------ a subclass says

    @abstractmethod
    def read(self, embeds: Tensor) -> Tensor:
        """Add a chain of (T, D) embeddings as uncommitted rows -> logits (V,) of the last."""

    @abstractmethod
    def grow(self, tokens: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Add (T,) tokens as uncommitted rows -> logits (T, V), hidden (T, D)."""

    @abstractmethod
    def counts(self) -> Sequence[Sequence[int]]:
        """Rows stored per layer and KV head, uncommitted ones included."""

    @abstractmethod
    def kv_bytes(self) -> int:
        """Bytes of committed rows."""

    @abstractmethod
    def heads(self, layer: int) -> Heads:
        """What is stored of one layer; a sequence may read a head only when it is looked at."""

    @abstractmethod
    def keep_pending(self, rows: Sequence[int]) -> None:
        """Of the uncommitted rows keep these in memory, in this order."""

    @abstractmethod
    def evict(self, layer: int, kept: Sequence[Tensor]) -> None:
        """Of one layer keep per KV head these (n,) row indices."""

    @abstractmethod
    def release(self) -> None:
        """Free the rows."""

    @abstractmethod
    def settle(self) -> None:
        """Give memory back after a commit and what it evicted."""

    # ------------------------------------------------------------ the contract

    @property
    def adapter(self) -> str | None:
        """Name of the LoRA adapter of the rows to come; rows that are there stay as they were computed."""
        return self._adapter

    @adapter.setter
    def adapter(self, name: str | None) -> None:
        if name is not None and name not in self._adapters:
            fix = suggestion(name, self._adapters) if self._adapters else "add it with pipe.add_adapter(name, folder)"
            raise SessionError(f"no adapter {name!r}", fix=fix)
        self._adapter = name

    @property
    def pending(self) -> int:
        """Uncommitted rows."""
        return len(self._tree)

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent; uncommitted rows do not count."""
        return SessionStats(
            kv_bytes=self.kv_bytes(),
            rows=tuple(tuple(int(n) - self.pending for n in layer) for layer in self.counts()),
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
        self.check(inputs.ids.tolist(), pending=False)
        self._seconds["preprocess"] += inputs.seconds
        ids = inputs.ids.to(self.model.device)
        embeds = self.model.embed(ids, self._encode(inputs))
        image = ids == self.model.tokenizer.image_token
        with self.timed("prefill"):
            for start in range(0, len(ids), CHUNK):
                chunk = embeds[start : start + CHUNK]
                logits = self.read(chunk)
                self.passed()
                self._keep(list(range(len(chunk))), image[start : start + CHUNK])
        return logits

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Add uncommitted rows, a chain or a tree -> logits (T, V), hidden (T, D).

        Raises:
            SessionError: no tokens, parents that point forward, or more rows than the model has positions.
        """
        self.check(tokens, pending=True)
        with self.timed("decode"):
            ids = torch.tensor(list(tokens), device=self._device)
            grown = self.grow(ids, self.step(len(tokens), parents))
        self.passed(len(tokens))
        return grown

    @torch.inference_mode()
    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Keep these uncommitted rows, which must be one path from the root; drop the others.

        Raises:
            SessionError: rows that are no path.
        """
        self._check_open()
        rows = list(range(self.pending)) if rows is None else list(rows)
        self._tree.check_path(rows)
        self._accepted += len(rows)
        self._keep(rows, None)

    def rollback(self) -> None:
        """Drop every uncommitted row."""
        self._check_open()
        self._drop([])

    def close(self) -> None:
        """Free the KV store."""
        self._tree.clear()
        self.release()
        self._windows, self._queries = [], []
        self._closed = True

    # ------------------------------------------------------------ for subclasses and their compiled models

    def step(self, rows: int, parents: Sequence[int] | None) -> Step:
        """Register `rows` new uncommitted rows -> their positions and mutual visibility."""
        step = self._tree.add(rows, parents, self.length, self._device)
        self._passing = True
        return step

    def passed(self, proposed: int = 0) -> None:
        """The pass for the rows of `step` is over, and they are stored."""
        self._passing = False
        self.proposed += proposed

    def note_queries(self, layer: int, queries: Tensor) -> None:
        """Remember (Hq, T, d) queries of new rows, if the policy looks at any."""
        if self.policy.window:
            self._queries[layer].append(queries)

    def check(self, tokens: Sequence[int], *, pending: bool) -> None:
        """Refuse tokens if the session is closed, they do not fit, or uncommitted rows are in the way."""
        self._check_open()
        rows = len(tokens)
        if not rows:
            raise SessionError("there are no tokens to read", fix="give at least one")
        lowest, highest = min(tokens), max(tokens)
        if lowest < 0 or highest >= self._vocabulary:
            wrong, why = (lowest if lowest < 0 else highest), f"the model knows 0 to {self._vocabulary - 1}"
            raise SessionError(f"there is no token {wrong}", why=why, fix="use the model's own tokenizer")
        if self.pending and not pending:
            raise SessionError(f"{self.pending} rows are not committed", fix="call commit() or rollback() first")
        total, limit = self.length + self.pending + rows, self._limit
        if total > limit:
            fix = "shorten the conversation, or lower max_tokens"
            raise SessionError(f"{total} rows exceed the model's {limit} positions", fix=fix)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("the session is closed", fix="open another with pipe.session()")
        if self._passing:
            why = "it is not known which of its rows are stored"
            raise SessionError("a pass was interrupted", why=why, fix="open another session with pipe.session()")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part of `stats.seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[part] += time.perf_counter() - start

    # ------------------------------------------------------------ commit and eviction

    def _keep(self, rows: Sequence[int], image: Tensor | None) -> None:
        """Commit uncommitted rows, of which `image` (T,) tells those of pictures; None: there are none."""
        self._drop(rows)
        self.length += len(rows)
        if type(self.policy) is not KeepAll:  # asking it for each layer costs more than the rest of a commit
            new = torch.zeros(len(rows), dtype=torch.bool, device=self._device) if image is None else image
            self._image = torch.cat([self._image, new])
            for layer, counts in enumerate(self.counts()):
                self._ask(layer, counts)
        self.settle()

    def _drop(self, rows: Sequence[int]) -> None:
        self.keep_pending(rows)
        for layer, new in enumerate(self._queries):
            if new:
                old = self._windows[layer]
                seen = torch.cat(new, dim=1)[:, list(rows)[-self.policy.window :]]
                window = seen if old is None else torch.cat([old, seen], dim=1)
                self._windows[layer] = window[:, -self.policy.window :].clone()
                self._queries[layer] = []
        self._tree.clear()

    def _ask(self, layer: int, counts: Sequence[int]) -> None:
        """Let the policy choose among a layer's rows, and hold it to its budget."""
        queries = self._windows[layer]
        if queries is None:
            queries = self._unseen
        kept = self.policy.keep(Layer(layer, *self.heads(layer), queries, self._image))
        if kept is not None:
            check_kept(self.policy, kept, counts)
            self.evict(layer, kept)
            counts = [len(index) for index in kept]
        check_budget(self.policy, layer, self.length, counts)

    def _encode(self, inputs: Inputs) -> Tensor | None:
        if inputs.patches is None:
            return None
        device, dtype = self.model.device, self.model.dtype
        with self.timed("vision"):
            features = self.model.vision_encoder(inputs.patches.to(device, dtype), inputs.grids)
        with self.timed("projector"):
            rows: Tensor = self.model.mlp(features)
        return rows
