"""Prefixes and pictures that were read before are not read again.

The engine runs on `Shared`, a compiled model in front of the backend's own. Its sessions begin, where they can, with a
copy of the committed rows of another conversation that starts with the same tokens, the same pictures and the same
adapter: a running one, or one that has ended and was kept. Rows of pictures are found by the hash of their patches.

Rows are shared under the policy that keeps everything, without a drafter: other policies decide by what was in sight
when a chunk was read, and a drafter must have read every row. Pictures are shared always.
"""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import attrs
import numpy as np
import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import SessionError
from andes_sdk.runtime.base import CHUNK_ROWS, BaseSession
from andes_sdk.runtime.decoder import Autoregressive
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Media, Work

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import CachePolicy, Inputs, Rows, Session
    from andes_serve.limits import Limits
    from andes_serve.memory import Memory
    from andes_serve.metrics import Metrics

FEWEST = 16
"""Rows below which a copy is not worth while."""

LONGEST = 64
"""A session so many times longer than what it shares is not copied for it."""


@frozen(eq=False)
class Kept:
    """A conversation that ended: what was read, as numbers (negative where no text stands), and its session."""

    key: np.ndarray
    adapter: str | None
    session: BaseSession
    bytes: int


@define(eq=False)
class Features:
    """Rows of pictures and other media by the hash of what they were made from, the least recently used go first."""

    limit: int
    found: OrderedDict[bytes, Tensor] = field(factory=OrderedDict)
    held: int = 0

    def get(self, name: bytes) -> Tensor | None:
        """(M, D), or None."""
        rows = self.found.get(name)
        if rows is not None:
            self.found.move_to_end(name)
        return rows

    def put(self, name: bytes, rows: Tensor) -> None:
        """Keep them, if they fit."""
        size = rows.numel() * rows.element_size()
        if size > self.limit:
            return
        self.found[name] = rows
        self.held += size
        while self.held > self.limit:
            _, gone = self.found.popitem(last=False)
            self.held -= gone.numel() * gone.element_size()


@define(eq=False)
class Shared:
    """A compiled model whose sessions begin with what others have read.

    Attributes:
        inner: the backend's own. shares: whether rows of prompts are shared.
        kept: conversations that ended, the least recently used first.
        chunk: most rows of a prompt in one piece; other policies decide at the end of one, so theirs stay as alone.
    """

    pipeline: Pipeline
    limits: Limits
    memory: Memory
    metrics: Metrics
    inner: Any = field(init=False)
    taps: Sequence[int] = field(init=False)
    shares: bool = field(init=False)
    chunk: int = field(init=False)
    features: Features = field(init=False)
    kept: list[Kept] = field(factory=list, init=False)
    live: Any = field(factory=weakref.WeakSet, init=False)

    def __attrs_post_init__(self) -> None:
        self.inner = self.pipeline.compiled
        self.taps = self.inner.taps
        plain = type(self.pipeline.policy) is KeepAll and isinstance(self.pipeline.decoder, Autoregressive)
        self.shares = plain and self.limits.prefixes > 0
        self.chunk = self.limits.chunk if type(self.pipeline.policy) is KeepAll else CHUNK_ROWS
        self.features = Features(self.limits.features)

    # ------------------------------------------------------------ as a compiled model

    def session(self, policy: CachePolicy) -> SharedSession:
        """An empty session; what it shares is looked up when its prompt is read."""
        return SharedSession(self, self.inner.session(policy))

    def step(self, work: Sequence[Work]) -> list[Rows]:
        """One step of the backend."""
        outer = {id(_inner(one.session)): one.session for one in work}
        try:
            return cast("list[Rows]", self.inner.step([attrs.evolve(one, session=_inner(one.session)) for one in work]))
        except SessionError as error:
            if error.session is not None:
                error.session = outer.get(id(error.session))
            raise

    def restore(self, state: Mapping[str, Tensor], policy: CachePolicy) -> Session:
        """As the backend."""
        return SharedSession(self, self.inner.restore(state, policy))

    def facts(self) -> Mapping[str, str]:
        """The backend's."""
        return cast("Mapping[str, str]", self.inner.facts())

    # ------------------------------------------------------------ prefixes

    def begin(self, key: np.ndarray, adapter: str | None) -> tuple[BaseSession | None, int]:
        """A session that has read the first rows of `key`, all but one at most, and how many; (None, 0): none has."""
        if not self.shares:
            return None, 0
        best: tuple[int, int, BaseSession, Kept | None] | None = None
        waiting = [(k.key, k.session, k) for k in self.kept if k.adapter == adapter]
        running = [(s.key, s.inner, None) for s in self.live if self._fits(s, adapter)]
        for other, session, kept in [*waiting, *running]:
            rows = min(common(key, other), len(key) - 1, session.length)
            if rows < max(FEWEST, session.length // LONGEST):
                continue
            if best is None or (rows, -session.length) > best[:2]:
                best = (rows, -session.length, session, kept)
        self.metrics.looked_up("prefix", hit=best is not None)
        if best is None:
            return None, 0
        rows, _, source, kept = best
        if kept is not None:  # used now
            self.kept.remove(kept)
            self.kept.append(kept)
        return cut(source, rows), rows

    def _fits(self, session: SharedSession, adapter: str | None) -> bool:
        return session.key is not None and session.adapter == adapter and session.is_open and not session.pending

    def keep(self, session: Any, tokens: Sequence[int]) -> None:
        """Take over the session of a conversation that ended, with what it answered; the caller closes no more."""
        inner = _inner(session)
        wanted = self.shares and isinstance(session, SharedSession) and session.key is not None and inner.is_open
        if not wanted or inner.pending or inner.length < FEWEST:
            inner.close()
            return
        key = np.concatenate([session.key, np.asarray(tokens, np.int64)])[: inner.length]
        size = int(inner.stats.kv_bytes)
        for old in [k for k in self.kept if k.adapter == inner.adapter and common(k.key, key) == len(k.key)]:
            self._forget(old)  # the new one holds all of it
        self.kept.append(Kept(key, inner.adapter, inner, size))
        self.memory.kept += size
        session.key = None
        self.shrink(self.limits.prefixes)

    def shrink(self, size: int) -> None:
        """Forget conversations until no more than so many bytes are kept."""
        while self.kept and self.memory.kept > max(0, size):
            self._forget(self.kept[0])

    def forget(self, adapter: str) -> None:
        """Forget what was read with an adapter."""
        for one in [k for k in self.kept if k.adapter == adapter]:
            self._forget(one)

    def _forget(self, one: Kept) -> None:
        self.kept.remove(one)
        self.memory.kept -= one.bytes
        one.session.close()

    # ------------------------------------------------------------ pictures

    def key_of(self, inputs: Inputs) -> tuple[np.ndarray, Mapping[str, list[tuple[bytes, Media]]]]:
        """Numbers that are equal where the same was read, and the items of each kind with their names."""
        key, items = inputs.ids.numpy().copy(), {}
        for kind, media in inputs.media.items():
            items[kind] = [(name_of(kind, one), one) for one in split(media)]
            numbers = [np.full(one.rows[0], -1 - int.from_bytes(name[:7])) for name, one in items[kind]]
            key[key == self.pipeline.tokenizer.placeholder(kind)] = np.concatenate(numbers)
        return key, items

    @torch.inference_mode()
    def embeds(self, session: BaseSession, inputs: Inputs, items: Mapping[str, Any], start: int) -> Tensor:
        """(T - start, D) inputs of the rows of a prompt from `start` on."""
        rows = {}
        for kind, some in items.items():
            mark = self.pipeline.tokenizer.placeholder(kind)
            before = int((inputs.ids[:start] == mark).sum())
            parts = []
            for name, one in some:
                count = one.rows[0]
                if before < count:
                    parts.append(self._rows(session, kind, name, one)[before:])
                before = max(0, before - count)
            if parts:
                rows[kind] = torch.cat(parts)
        model = self.pipeline.model
        return model.embed(inputs.ids[start:].to(model.device), rows)

    def _rows(self, session: BaseSession, kind: str, name: bytes, one: Media) -> Tensor:
        rows = self.features.get(name)
        self.metrics.looked_up(kind, hit=rows is not None)
        if rows is None:
            rows = session.see(one) if kind == "image" else self.pipeline.model.encode({kind: one})[kind]
            self.features.put(name, rows)
        return rows


class SharedSession:
    """A session of the backend, or what was copied into its place; everything but `chunks` is the backend's.

    Attributes:
        cached: rows of the prompt that were copied. key: as `Shared.key_of`; None before the prompt is known.
    """

    def __init__(self, shared: Shared, inner: Any) -> None:
        self.shared, self.inner, self.cached = shared, inner, 0
        self.key: np.ndarray | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def adapter(self) -> str | None:
        """The backend session's."""
        return cast("str | None", self.inner.adapter)

    @adapter.setter
    def adapter(self, name: str | None) -> None:
        self.inner.adapter = name

    def fork(self) -> SharedSession:
        """Another with the same rows."""
        forked = SharedSession(self.shared, self.inner.fork())
        forked.key, forked.cached = self.key, self.cached
        return forked

    def chunks(self, inputs: Inputs) -> Iterator[Work]:
        """As `Session.chunks`, without what another session has read."""
        shared = self.shared
        if not isinstance(self.inner, BaseSession):
            yield from self.inner.chunks(inputs)
            return
        tokens = inputs.ids.tolist()
        self.inner.check(tokens)
        self.key, items = shared.key_of(inputs)
        copied, start = shared.begin(self.key, self.adapter)
        if copied is not None:
            self.inner.close()
            self.inner, self.cached = copied, start
        shared.live.add(self)
        embeds = shared.embeds(self.inner, inputs, items, start)
        mark = shared.pipeline.tokenizer.placeholder("image")
        image = inputs.ids[start:].to(embeds.device) == mark if "image" in inputs.media else None
        size = min(int(getattr(one, "chunk_rows", CHUNK_ROWS)) for one in (shared.inner, shared.pipeline.policy))
        size = min(size, shared.chunk)
        for first in range(start, len(tokens), size):
            part, own = slice(first, first + size), slice(first - start, first - start + size)
            last = first + size >= len(tokens)
            yield Work(
                session=cast("Session", self), tokens=tokens[part], embeds=embeds[own],
                image=None if image is None else image[own], logits=int(last), reading=not last,
            )  # fmt: skip


def _inner(session: Any) -> Any:
    return session.inner if isinstance(session, SharedSession) else session


def common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common start of two arrays."""
    count = min(len(one), len(other))
    differ = np.flatnonzero(one[:count] != other[:count])
    return int(differ[0]) if len(differ) else count


@torch.inference_mode()
def cut(session: BaseSession, rows: int) -> BaseSession:
    """A copy of a session that keeps everything, with its first rows only."""
    made = session.fork()
    if rows < made.length:
        heads = session.model.text.kv_heads
        for layer in range(session.model.text.layers):
            made.evict(layer, [torch.arange(rows)] * heads)
        made.length = rows
        made.settle()
    return made


def split(media: Media) -> list[Media]:
    """Each item by itself."""
    made, start = [], 0
    for size, rows in zip(media.sizes, media.rows, strict=True):
        count = int(np.prod(size))
        made.append(Media(data=media.data[start : start + count], sizes=(size,), rows=(rows,)))
        start += count
    return made


def name_of(kind: str, one: Media) -> bytes:
    """A hash of an item's content."""
    data = one.data.contiguous()
    about = f"{kind} {one.sizes} {one.rows} {data.dtype} ".encode()
    return hashlib.sha256(about + data.numpy().tobytes()).digest()
