"""What every session does alike: trees of rows, checks, counts and times.

A backend's session subclasses `BaseSession` and brings memory: the methods below "a subclass says". Its compiled model
subclasses `andes_sdk.runtime.compiled.BaseCompiled` and brings arithmetic.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from andes_sdk.config import suggestion
from andes_sdk.errors import SessionError
from andes_sdk.runtime.keeping import Heads, Keeping
from andes_sdk.runtime.tree import Step, Tree
from andes_sdk.types import Inputs, Look, Rows, SessionStats, Work

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import CachePolicy, Compiled, Media

CHUNK_ROWS = 1024
"""Rows of a prompt read at a time; eviction happens in between, which bounds the peak."""


class BaseSession(ABC):
    """A conversation in progress; see `andes_sdk.types.Session`.

    Attributes:
        model: what computes embeddings and image rows. policy: decides which KV rows stay.
        keeping: the policy's memory of this session.
        length: committed rows seen so far.
        proposed: rows that decoders asked for.
    """

    def __init__(
        self,
        compiled: Compiled,
        model: VisionLanguageModel,
        policy: CachePolicy,
        *,
        adapters: Collection[str] = (),
        taps: Sequence[int] = (),
        keeper: Mapping[str, Tensor] | None = None,
    ) -> None:
        spec = model.text
        self.compiled, self.model, self.policy = compiled, model, policy
        # asked for with every token; a model answers from its configuration, which takes microseconds each time
        self._limit, self._vocabulary, self._device = spec.max_positions, spec.vocab_size, model.device
        self.keeping = Keeping(policy, spec, model.device, taps, keeper)
        self.length = self.proposed = 0
        self.notes: dict[str, float] = {}
        self._adapters = adapters  # the compiled model's own collection: it may grow
        self._adapter: str | None = None
        self._tree = Tree()
        self._seconds = dict.fromkeys(("preprocess", "vision", "projector", "prefill", "decode"), 0.0)
        self._accepted = 0
        self._closed = self._prompt = False

    # ------------------------------------------------------------ a subclass says

    @abstractmethod
    def reserve(self, rows: int) -> None:
        """Make room for so many new rows. May raise SessionError; nothing has changed then."""

    @abstractmethod
    def mark(self) -> Any:
        """What `reset` needs to find the rows that are stored now."""

    @abstractmethod
    def reset(self, mark: Any) -> None:
        """Drop what was stored since `mark`."""

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

    @abstractmethod
    def dump(self) -> Mapping[str, Tensor]:
        """The committed rows as plain tensors, to the bit."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take rows that `dump` gave, into an empty session."""

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
    def is_open(self) -> bool:
        """Whether it was not closed."""
        return not self._closed

    @property
    def pending(self) -> int:
        """Uncommitted rows."""
        return len(self._tree)

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent; uncommitted rows do not count."""
        return SessionStats(
            kv_bytes=self.kv_bytes(),
            rows=tuple(tuple(int(n) - self.pending for n in layer) for layer in self.counts()), committed=self.length,
            accepted=self._accepted, proposed=self.proposed, seconds=dict(self._seconds), notes=dict(self.notes),
        )  # fmt: skip

    def chunks(self, inputs: Inputs) -> Iterator[Work]:
        """The parts in which to read a prompt, its media encoded; commit each before asking for the next.

        Raises:
            SessionError: an empty prompt, uncommitted rows, or more rows than the model has positions.
        """
        tokens = inputs.ids.tolist()
        self.check(tokens)
        if self.pending:
            raise SessionError(f"{self.pending} rows are not committed", fix="call commit() or rollback() first")
        self._seconds["preprocess"] += inputs.seconds
        embeds = self._embedded(inputs)
        mark = self.model.tokenizer.placeholder("image")
        image = inputs.ids.to(self._device) == mark if "image" in inputs.media else None
        size = min(int(getattr(one, "chunk_rows", CHUNK_ROWS)) for one in (self.compiled, self.policy))
        for start in range(0, len(tokens), size):
            part, last = slice(start, start + size), start + size >= len(tokens)
            yield Work(
                session=self, tokens=tokens[part], embeds=embeds[part], image=None if image is None else image[part],
                logits=int(last), reading=not last,
            )  # fmt: skip

    def prefill(self, inputs: Inputs) -> Tensor:
        """Read and commit a prompt -> logits (V,) of its last row. A second prompt continues the first.

        Raises:
            SessionError: as `chunks`.
        """
        for work in self.chunks(inputs):
            (rows,) = self.compiled.step([work])
            self.commit(reading=work.reading)
        return rows.logits[-1]

    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Add uncommitted rows, a chain or a tree -> logits (T, V), hidden (T, D).

        Raises:
            SessionError: no tokens, parents that point forward, or more rows than the model has positions.
        """
        (rows,) = self.compiled.step([Work(session=self, tokens=tokens, parents=parents)])
        return rows.logits, rows.hidden

    @torch.inference_mode()
    def commit(self, rows: Sequence[int] | None = None, *, reading: bool = False) -> None:
        """Keep these uncommitted rows, which must be one path from the root; drop the others.

        Raises:
            SessionError: rows that are no path.
        """
        self._check_open()
        rows = list(range(self.pending)) if rows is None else list(rows)
        if len(rows) > 1 or rows != list(range(self.pending)):
            self._tree.check_path(rows)
        if not self._prompt:
            self._accepted += len(rows)
        self._drop(rows)
        self.length += len(rows)
        self.keeping.ask(self.length, reading, self.counts, self.heads, self._replay, self.evict)
        self.settle()

    def due(self, rows: int) -> bool:
        """Whether the cache policy chooses anew once so many uncommitted rows are committed."""
        return self.keeping.due(self.length + rows, rows)

    def rollback(self) -> None:
        """Drop every uncommitted row."""
        self._check_open()
        self._drop([])

    def fork(self) -> BaseSession:
        """Another session with the same committed rows.

        Raises:
            SessionError: uncommitted rows.
        """
        forked: Any = self.compiled.restore(self.state(), self.policy)
        return forked  # type: ignore[no-any-return]

    def state(self) -> Mapping[str, Tensor]:
        """Committed rows and all else that `Compiled.restore` needs.

        Raises:
            SessionError: uncommitted rows.
        """
        from andes_sdk.runtime.snapshot import state_of

        self._check_open()
        if self.pending:
            raise SessionError(f"{self.pending} rows are not committed", fix="call commit() or rollback() first")
        return state_of(self)

    def close(self) -> None:
        """Free the KV store."""
        self._tree.cut(0)
        self.release()
        self._closed = True

    # ------------------------------------------------------------ for subclasses and their compiled models

    def check(self, tokens: Sequence[int]) -> None:
        """Refuse tokens if the session is closed, or they do not fit."""
        self._check_open()
        try:
            rows = len([index(token) for token in tokens])
        except TypeError as error:
            raise SessionError("no ids of tokens", who="tokens", why=str(error), fix="give whole numbers") from None
        if not rows:
            raise SessionError("there are no tokens to read", fix="give at least one")
        lowest, highest = min(tokens), max(tokens)
        if lowest < 0 or highest >= self._vocabulary:
            wrong, why = (lowest if lowest < 0 else highest), f"the model knows 0 to {self._vocabulary - 1}"
            raise SessionError(f"there is no token {wrong}", why=why, fix="use the model's own tokenizer")
        total, limit = self.length + self.pending + rows, self._limit
        if total > limit:
            fix = "shorten the conversation, or lower max_tokens"
            raise SessionError(f"{total} rows exceed the model's {limit} positions", fix=fix)

    def begin(self, work: Work) -> Step:
        """Register the rows of a work as uncommitted -> their positions and mutual visibility."""
        step = self._tree.add(len(work.tokens), work.parents, self.length, self._device)
        self._prompt = work.embeds is not None
        return step

    def done(self, rows: Rows, work: Work, seconds: float) -> None:
        """The rows of a work are computed and stored."""
        self._seconds["prefill" if self._prompt else "decode"] += seconds
        if not self._prompt:
            self.proposed += len(work.tokens)
        self.keeping.computed(rows, work.image)

    def moment(self) -> tuple[Any, ...]:
        """What `undo` needs to come back to this moment."""
        spent = self.proposed, self._prompt, dict(self._seconds)
        return self.pending, self.mark(), self.keeping.mark(), spent

    def undo(self, moment: tuple[Any, ...]) -> None:
        """Go back to the uncommitted rows, and what was stored, remembered and counted, at `moment`."""
        pending, mark, remembered, (self.proposed, self._prompt, self._seconds) = moment
        self._tree.cut(pending)
        self.reset(mark)
        self.keeping.reset(remembered)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part of `stats.seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - start

    def see(self, pictures: Media) -> Tensor:
        """Rows of pictures (M, D); a subclass may compute them in its own way."""
        model = self.model
        with self.timed("vision"):
            features = model.vision_encoder(pictures.data.to(model.device, model.dtype), pictures.sizes)
        with self.timed("projector"):
            rows: Tensor = model.mlp(features)
        return rows

    def _perceive(self, kind: str, media: Media) -> Tensor:
        if kind == "image":
            return self.see(media)
        with self.timed(kind):
            return self.model.encode({kind: media})[kind]

    @torch.inference_mode()
    def _embedded(self, inputs: Inputs) -> Tensor:
        rows = {kind: self._perceive(kind, media) for kind, media in inputs.media.items()}
        return self.model.embed(inputs.ids.to(self._device), rows)

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError("the session is closed", fix="open another with pipe.session()")

    def _drop(self, rows: Sequence[int]) -> None:
        self.keep_pending(rows)
        self.keeping.commit(rows, self.pending)
        self._tree.cut(0)

    def _replay(self, embeds: Tensor, look: Look) -> Tensor:
        """Run rows behind those that are stored, show `look` their queries and keys, forget them -> what taps saw.

        Near the model's last position they stand at its last ones, some of which stored rows have too.

        Raises:
            SessionError: no rows, more than the model has positions, or no memory for them.
        """
        rows, keeping, compiled = len(embeds), self.keeping, cast("Any", self.compiled)
        if not 0 < rows <= self._limit:
            who, why = f"cache policy {self.policy.name!r}", f"the model has {self._limit} positions"
            raise SessionError(f"replays {rows} rows", who=who, why=why, fix="replay 1 to that many rows at a time")
        self.reserve(rows)
        moment = self.moment()
        work = Work(session=self, tokens=[0] * rows, embeds=embeds, logits=0, reading=True)
        keeping.look = look
        try:
            step = self._tree.add(rows, None, min(self.length, self._limit - rows), self._device)
            return cast("Tensor", compiled.compute([(self, work, step)])[0].features[:, keeping.columns])
        finally:
            keeping.look = None
            self.undo(moment)
