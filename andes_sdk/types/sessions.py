"""The session, and who meets there: cache policies, adapters, samplers and decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from torch import Tensor

    from .media import Media


@frozen(eq=False)
class Inputs:
    """One prompt, ready for a model: ids with one placeholder per row of what is no text, and what makes those rows.

    Attributes:
        ids: (T,) token ids, int64.
        media: kind ("image", or a modality's name) -> its items in order; kinds without items are absent.
        supervised: (T,) bool, for training; None otherwise.
        prefix: text that counts as already answered.
        seconds: time spent in preprocessing.
    """

    ids: Tensor
    media: Mapping[str, Media] = field(factory=dict)
    supervised: Tensor | None = None
    prefix: str = ""
    seconds: float = 0.0


@frozen(eq=False, kw_only=True)
class Layer:
    """One layer of a KV store as a cache policy sees it. Lists are per KV head, ragged after eviction.

    Attributes:
        keys, values: per head (rows, d).
        positions: per head (rows,) absolute positions.
        queries: (Hq, window, d), the last window of queries (fewer at the start).
        image: (rows seen so far,) True where the row at that position came from an image; rows of other senses are
            False, as text.
        scores: per head (rows,) what `Keeper.score` said of the rows, or None.
    """

    index: int
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    positions: Sequence[Tensor]
    queries: Tensor
    image: Tensor
    scores: Sequence[Tensor] | None = None


Look = Callable[[int, "Tensor", "Tensor"], None]
"""(layer, queries (Hq, T, d), keys (Hkv, T, d)) of rows that a replay computes."""


@frozen(eq=False, kw_only=True)
class Cache:
    """Everything a policy decides over: all layers of one session at once.

    Attributes:
        seen: rows committed so far.
        layers: each is read when it is looked at.
        embeds: (seen, D) inputs of all rows, for policies that say `replays`; None otherwise.
        replay: runs (T, D) embeddings behind the rows that are stored, forgets them, and gives (T, taps, D), what they
            are as they enter the policy's taps; `look` gets their queries and keys layer by layer. No logits. Where
            fewer than T positions are left, they stand at the model's last T; more than it has, or none, are refused.
    """

    seen: int
    layers: Sequence[Layer]
    embeds: Tensor | None
    replay: Callable[[Tensor, Look], Tensor]


class Keeper(Protocol):
    """The memory of a cache policy for one session."""

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """(T, D) committed rows entering `layer`, one of `taps` -> (Hkv, T) stored beside the rows, or None."""

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Whether `keep` is to be asked now. `held`: rows of all layers and heads; `reading`: more prompt follows."""

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """Per layer and KV head the indices of rows to keep, ascending; None keeps all of a layer.

        Called at committed boundaries only.
        """

    def state(self) -> Mapping[str, Tensor]:
        """What `CachePolicy.open` needs to go on in another session."""


@runtime_checkable
class CachePolicy(Protocol):
    """Decides which KV rows stay. The session moves the memory.

    The policy is shared; each session has a keeper, which is the policy's memory of that session. An attribute
    `chunk_rows`, if it has one, is the most rows of a prompt that are read before it is asked again.
    """

    @property
    def name(self) -> str:
        """As `explain()` and errors show it."""

    @property
    def window(self) -> int:
        """How many of the last queries `keep` wants to see; 0 for none."""

    @property
    def taps(self) -> Sequence[int]:
        """Layers whose entering rows `Keeper.score` gets; empty for none."""

    @property
    def replays(self) -> bool:
        """Whether `keep` wants the inputs of all rows, to replay them."""

    def budget(self, seen: int) -> int | None:
        """Rows of all layers and heads together allowed once `seen` have been seen, or None: everything."""

    def open(self, state: Mapping[str, Tensor] | None = None) -> Keeper:
        """A memory for a new session, or for one that goes on from another keeper's `state`."""


@frozen(eq=False, kw_only=True)
class Work:
    """New rows of one session in a step: a chunk of a prompt, a chain, or a tree of tokens.

    Attributes:
        tokens: ids (T,).
        embeds: (T, D) inputs of the rows, where they are not the tokens' own; None otherwise.
        image: (T,) bool, True for rows of pictures; None: there are none.
        parents: index (into the uncommitted rows) of each row's predecessor, -1 for the last committed row; None: a
            chain after the last uncommitted row. A row attends to committed rows and to its ancestors.
        logits: how many of the last rows need logits; None: all.
        reading: more of the prompt follows.
    """

    session: Session
    tokens: Sequence[int]
    embeds: Tensor | None = None
    image: Tensor | None = None
    parents: Sequence[int] | None = None
    logits: int | None = None
    reading: bool = False


@frozen(eq=False, kw_only=True)
class Rows:
    """What a step computed for the rows of one `Work`.

    Attributes:
        logits: (n, V) of the last n rows, as the work asked.
        hidden: (T, D) after the last norm.
        embeds: (T, D) inputs.
        features: (T, taps, D) rows entering the layers that the backend was asked to tap.
    """

    logits: Tensor
    hidden: Tensor
    embeds: Tensor
    features: Tensor

    def seen_at(self, columns: Sequence[int]) -> Rows:
        """The same with these columns of the features, in this order."""
        if list(columns) == list(range(self.features.shape[1])):
            return self
        return Rows(
            logits=self.logits, hidden=self.hidden, embeds=self.embeds, features=self.features[:, list(columns)]
        )

    def take(self, rows: Sequence[int]) -> Rows:
        """Some of the rows, in this order; logits too, where every row has them."""
        count = len(self.hidden)
        if list(rows) == list(range(count)):
            return self
        index = list(rows)
        logits = self.logits[index] if len(self.logits) == count else self.logits[:0]
        return Rows(logits=logits, hidden=self.hidden[index], embeds=self.embeds[index], features=self.features[index])


class Session(Protocol):
    """One conversation in progress on a compiled model. Everything that decodes, caches or adapts meets here."""

    adapter: str | None
    """Name of the LoRA adapter of the rows to come; None: none. An unknown name raises `SessionError`."""

    notes: dict[str, float]
    """What a decoder says of its work, for `stats`."""

    @property
    def length(self) -> int:
        """Committed rows seen so far; the position of the next token. Eviction does not lower it."""

    @property
    def stats(self) -> SessionStats:
        """What the session holds and has spent."""

    def chunks(self, inputs: Inputs) -> Iterator[Work]:
        """The parts in which to read a prompt, its media encoded; commit each before asking for the next."""

    def prefill(self, inputs: Inputs) -> Tensor:
        """Read a prompt alone, commit it; logits (V,) of its last row."""

    def extend(self, tokens: Sequence[int], parents: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """One step alone: T uncommitted rows -> logits (T, V), hidden (T, D); `parents` as in `Work`."""

    def commit(self, rows: Sequence[int] | None = None, *, reading: bool = False) -> None:
        """Keep these uncommitted rows (one path from the root; None: all of them), drop the others.

        `reading`: more of a prompt follows, which the cache policy is told.
        """

    def due(self, rows: int) -> bool:
        """Whether the cache policy chooses anew once so many uncommitted rows are committed."""

    def rollback(self) -> None:
        """Drop every uncommitted row."""

    def fork(self) -> Session:
        """Another session with the same committed rows; neither sees what the other does from now on."""

    def state(self) -> Mapping[str, Tensor]:
        """Committed rows and all else that `Compiled.restore` needs, as plain tensors."""

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
        seconds: time per part: preprocess, vision, projector, prefill, decode, and each modality by its name.
        notes: what the decoder says of its work.
    """

    kv_bytes: int
    rows: tuple[tuple[int, ...], ...]
    committed: int
    accepted: int
    proposed: int
    seconds: Mapping[str, float]
    notes: Mapping[str, float] = field(factory=dict)


@frozen(eq=False, kw_only=True)
class LowRank:
    """What an adapter adds to one linear layer: y += scale * b (a x), in float32.

    Attributes:
        a: (rank, in) floats, or int8.
        b: (out, rank) floats, or int8.
        a_scale: (rank,), one for each row of an int8 matrix; None for floats.
        b_scale: (out,), the same for `b`.
    """

    a: Tensor
    b: Tensor
    scale: float
    a_scale: Tensor | None = None
    b_scale: Tensor | None = None

    def matrices(self) -> tuple[Tensor, Tensor]:
        """a and b in float32."""
        pairs = ((self.a, self.a_scale), (self.b, self.b_scale))
        a, b = (m.float() if s is None else m.float() * s.float()[:, None] for m, s in pairs)
        return a, b


@frozen(eq=False, kw_only=True)
class Adapter:
    """A LoRA adapter: an input of a pass, as tokens are. Attached by reference, never merged, nothing is rebuilt.

    Attributes:
        layers: linear layer, by its name within the language model (`model.layers.0.self_attn.q_proj`) -> its pair.
        base: the numbers (`Packed.numbers`) of the model that it was trained on; "" where it says none.
    """

    name: str
    layers: Mapping[str, LowRank]
    base: str = ""


@frozen
class Proposal:
    """Tokens that may follow, as a tree.

    Attributes:
        tokens: the guesses.
        parents: index of each one's predecessor among them, -1 for the last token of the answer; empty: a chain.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()


class Draft(Protocol):
    """The memory of a decoder for one conversation."""

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Rows that were committed, the prompt's chunks first; `rows` has what the model computed for them."""

    def fork(self) -> Draft:
        """A memory of its own with the same content."""


@runtime_checkable
class JoiningDraft(Protocol):
    """A draft that wants to know its conversation: session and prompt, media included. Optional, beside `Draft`."""

    def join(self, session: Session, inputs: Inputs) -> None:
        """Called before the prompt is read, and for a fork with its own session."""


@runtime_checkable
class Decoder(Protocol):
    """Proposes tokens. The engine verifies them, so the text is what plain decoding gives, whatever is proposed."""

    @property
    def name(self) -> str:
        """As `explain()` and errors show it."""

    @property
    def taps(self) -> Sequence[int]:
        """Layers whose entering rows `Rows.features` must have, in this order; empty for none."""

    def open(self) -> Draft:
        """A memory for a new conversation."""

    def propose(self, drafts: Sequence[Draft], last: Sequence[int]) -> Sequence[Proposal]:
        """What may follow the last token of each conversation, which its draft has not read yet."""


@runtime_checkable
class Constraint(Protocol):
    """Says which tokens may come next: a grammar, a schema, a list of choices."""

    def allowed(self, answer: Sequence[int]) -> Tensor | None:
        """(V,) bool for the token after `answer`, or floats to add to its logits, or None. Of `answer` alone."""
