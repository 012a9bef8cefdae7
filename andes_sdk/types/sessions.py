"""The session, and who meets there: cache policies, adapters, samplers and decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from .modules import Grid


@frozen(eq=False)
class Inputs:
    """One prompt, ready for a model: ids with one `image_token` per image row, and the pixels.

    Attributes:
        ids: (T,) token ids, int64.
        patches: (N, 3*p*p) float32, or None without images.
        grids: one per image.
        supervised: (T,) bool, for training; None otherwise.
        prefix: text that counts as already answered.
        seconds: time spent in preprocessing.
    """

    ids: Tensor
    patches: Tensor | None = None
    grids: tuple[Grid, ...] = ()
    supervised: Tensor | None = None
    prefix: str = ""
    seconds: float = 0.0


@frozen
class Layer:
    """One layer of a KV store as a cache policy sees it. Lists are per KV head, ragged after eviction.

    Attributes:
        keys, values: per head (rows, d).
        positions: per head (rows,) absolute positions.
        queries: (Hq, window, d), the last window of queries (fewer at the start).
        image: (rows seen so far,) True where the row at that position came from an image.
    """

    index: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    positions: Sequence[Tensor]
    queries: Tensor
    image: Tensor


@runtime_checkable
class CachePolicy(Protocol):
    """Decides which KV rows stay. The session moves the memory."""

    @property
    def name(self) -> str:
        """As `explain()` and errors show it."""

    @property
    def window(self) -> int:
        """How many of the last queries `keep` wants to see; 0 for none."""

    def budget(self, rows: int) -> int | None:
        """Rows per head allowed once `rows` have been seen, or None: everything. Kept to by the session's checks."""

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """Per KV head the indices of rows to keep, ascending; None keeps all. Never called with uncommitted rows."""


class Session(Protocol):
    """One conversation in progress on a compiled model. Everything that decodes, caches or adapts meets here."""

    adapter: str | None
    """Name of the LoRA adapter of the rows to come; None: none. An unknown name raises `SessionError`."""

    @property
    def length(self) -> int:
        """Committed rows seen so far; the position of the next token. Eviction does not lower it."""

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent."""

    def prefill(self, inputs: Inputs) -> Tensor:
        """Read a prompt (in chunks, eviction between them), commit it; logits (V,) of its last row."""

    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Add T uncommitted rows -> logits (T, V), hidden (T, D).

        `parents[i]` is the index (into the uncommitted rows) of row i's predecessor, -1 for the last committed row;
        None means a chain after the last uncommitted row. A row attends to committed rows and to its ancestors.
        """

    def commit(self, rows: Sequence[int] | None = None) -> None:
        """Keep these uncommitted rows (one path from the root; None: all of them), drop the others."""

    def rollback(self) -> None:
        """Drop every uncommitted row."""

    def close(self) -> None:
        """Free the KV store; the session cannot be used again."""


@frozen(kw_only=True)
class SessionStats:
    """What a session holds and what it has spent.

    Attributes:
        kv_bytes: bytes of committed KV rows.
        rows: committed rows kept, per layer and KV head.
        committed: rows committed so far.
        accepted, proposed: tokens a decoder committed, and rows it asked `extend` for.
        seconds: time per part: preprocess, vision, projector, prefill, decode.
    """

    kv_bytes: int
    rows: tuple[tuple[int, ...], ...]
    committed: int
    accepted: int
    proposed: int
    seconds: Mapping[str, float]


class Sampler(Protocol):
    """Chooses a token from logits; its noise is keyed by (seed, absolute position), never by call order."""

    def pick(self, logits: Tensor, position: int, history: Sequence[int]) -> int:
        """(V,) logits for the token that will stand at `position`; `history` is prompt and answer so far."""


@frozen(eq=False, kw_only=True)
class LowRank:
    """What an adapter adds to one linear layer: y += scale * b (a x), in float32.

    Attributes:
        a: (rank, in) float32. b: (out, rank) float32.
    """

    a: Tensor
    b: Tensor
    scale: float


@frozen(eq=False, kw_only=True)
class Adapter:
    """A LoRA adapter: an input of a pass, as tokens are. Attached by reference, never merged, nothing is rebuilt.

    Attributes:
        layers: linear layer, by its name within the language model (`model.layers.0.self_attn.q_proj`) -> its pair.
    """

    name: str
    layers: Mapping[str, LowRank]


@runtime_checkable
class Decoder(Protocol):
    """Turns a prefilled session into tokens: proposes, verifies through `extend`, commits."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def decode(self, session: Session, logits: Tensor, sampler: Sampler, history: list[int]) -> Iterator[list[int]]:
        """Yield accepted tokens in lists (one or more at a time), for ever; the caller stops the iterator.

        `logits` are those of the last committed row. `history` is the prompt; append to it what is yielded.
        """
