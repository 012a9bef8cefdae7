"""What plugins build and what meets at the seams: small Protocols, and the plain data they exchange.

Shapes: N patches, T rows (tokens), V vocabulary, D language width, Dv vision width, Hq/Hkv heads, d head size.
Nothing here imports torch at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.packing import Artefact
    from andes_sdk.training.run import StageRun
    from andes_sdk.training.state import Position

Grid = tuple[int, int]
"""Rows and columns of patches of one image: (H / patch, W / patch)."""


# ---------------------------------------------------------------- facts about modules


@frozen(kw_only=True)
class VisionSpec:
    """What the rest of the pipeline must know of an encoder.

    Attributes:
        width: Dv, features per patch.
        patch_size: side of a patch in pixels.
        merge: side of the block of patches that lie next to one another in the sequence (2: a 2x2 block).
        mean, std: per-channel normalisation of pixels scaled to [0, 1].
    """

    width: int
    patch_size: int
    merge: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@frozen(kw_only=True)
class TextSpec:
    """What the rest of the pipeline must know of a language model."""

    width: int
    vocab_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    max_positions: int


# ---------------------------------------------------------------- slots: modules


class VisionEncoder(Protocol):
    """An `nn.Module` that turns patches of several images into features, image by image.

    Patches arrive in block order (`andes_sdk.patches.patchify`): every `merge x merge` block is contiguous.
    Images are packed on the sequence axis; attention must never cross from one to another.
    """

    @property
    def spec(self) -> VisionSpec:
        """Facts for the rest of the pipeline."""

    def __call__(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) normalised pixels, one grid per image -> (N, Dv) in the same order."""


class Projector(Protocol):
    """An `nn.Module` that merges blocks of patches and maps them to the language model's width."""

    def __call__(self, features: Tensor) -> Tensor:
        """(N, Dv) in block order -> (N / merge**2, D)."""


class Attend(Protocol):
    """How rows attend to one another; given by the runtime, called by the language model in each layer.

    A language model computes q, k, v (positions already applied) and leaves masks, packing and the KV store to this.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""


class LanguageModel(Protocol):
    """An `nn.Module`, decoder-only. Rows of any number of sequences come as one packed row axis."""

    @property
    def spec(self) -> TextSpec:
        """Facts for the rest of the pipeline."""

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""


class Tokenizer(Protocol):
    """Text to ids and back, with the family's special tokens and chat template."""

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""

    @property
    def image_token(self) -> int:
        """The id that stands where a row of image features goes."""

    @property
    def eos(self) -> int:
        """The id that ends an answer."""

    @property
    def pad(self) -> int:
        """The id that fills; it ends an answer too."""

    def encode(self, text: str) -> list[int]:
        """Plain text; special tokens written out in it stay text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, but for those that belong to answers (`<think>`, boxes)."""

    def render(self, turns: Sequence[Turn], *, think: bool, generate: bool) -> Rendered:
        """Chat template: turns -> ids, with one entry per image where its rows are to be inserted."""

    def save(self, folder: Path) -> None:
        """Write what `andes_tokenizer(folder=folder)` needs to build the same tokenizer again."""


@frozen
class Turn:
    """One message: a role and its parts in order; an image is `None` (its pixels travel beside the text)."""

    role: str
    parts: tuple[str | None, ...]


@frozen
class Rendered:
    """A rendered conversation.

    Attributes:
        ids: token ids, exactly one `image_token` for each image (later repeated once per row).
        supervised: True where a training stage may place a loss (assistant text and its end of turn).
        prefix: text that counts as already answered (`<think>` when thinking is asked for).
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    prefix: str = ""


# ---------------------------------------------------------------- the session and who meets there


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


class Compiled(Protocol):
    """A model made ready to run by a backend."""

    def session(self, policy: CachePolicy) -> Session:
        """An empty session under a cache policy."""

    def extend_many(self, sessions: Sequence[Session], tokens: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """One step of several sessions together; results as from `extend` on each."""

    def facts(self) -> Mapping[str, str]:
        """Rows for `explain()`: device, dtype, kernels chosen and why."""


@runtime_checkable
class AdaptableCompiled(Protocol):
    """A compiled model that takes adapters. Optional, beside `Compiled`; `session.adapter` then takes their names.

    Sessions of one `extend_many` may have different adapters; each row gets what it would get alone.
    """

    def add_adapter(self, adapter: Adapter) -> None:
        """Make an adapter known to all sessions, open ones too.

        Raises:
            DuplicateName: there is one of that name. ConfigError: a layer that this backend cannot adapt.
        """


@runtime_checkable
class Backend(Protocol):
    """A way to run a model. Asking for what the machine lacks raises `BackendUnavailable`."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def compile(self, model: VisionLanguageModel, *, device: str, dtype: str) -> Compiled:
        """Make a model ready on a device ('cpu', 'cuda' …) in a precision ('float32', 'bfloat16', 'float16')."""


@runtime_checkable
class PackedBackend(Protocol):
    """A backend that runs weights as an artefact stores them. Optional, beside `Backend`.

    Without it an artefact is dequantised into float weights, and `compile` gets those.
    """

    def open(self, artefact: Artefact, model: VisionLanguageModel, *, device: str, dtype: str) -> Compiled:
        """Make an artefact ready without unpacking what this backend computes itself.

        Args:
            artefact: mapped; `artefact.packed(name)` are the bytes of a matrix, to be used where they lie.
            model: the modules of the artefact's plan. They hold no weights: each one is read from the artefact when
                it is used, and forgotten. Right for whatever the backend leaves to torch.

        Raises:
            BackendUnavailable: formats or a model that this backend cannot run; the reasons say which.
        """


# ---------------------------------------------------------------- collections


@runtime_checkable
class TrainingStage(Protocol):
    """One stage of training: what trains, at which rate, on which data, towards which loss."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module name prefix -> learning rate; what no prefix names is frozen."""

    def loss(self, model: VisionLanguageModel, batch: Any) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (scalar loss summed over supervised tokens / `batch.tokens`, figures to log)."""


@runtime_checkable
class ConversationStage(Protocol):
    """A training stage whose data lines have a shape of their own. Optional, beside `TrainingStage`."""

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Mapping[str, Any]]]:
        """One data line -> conversations about the same pictures, which share their common prefix in a pack.

        Raises:
            TrainingError: the line is not of that shape; the loop adds file and line.
        """


@runtime_checkable
class FeedingStage(Protocol):
    """A training stage that makes its own batches. Optional, beside `TrainingStage`.

    A batch has `tokens` (its weight in the mean over batches and processes), `samples` and `to(device)`.
    """

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Any]]:
        """Batches for ever, each with the position right after it; feeding from a position repeats what followed it.

        Wrap `andes_sdk.training.feed.packed(run)` to add to the usual packs.
        """


@runtime_checkable
class StatefulStage(Protocol):
    """A training stage that learns something beside the weights, such as a running mean. Optional."""

    def state(self) -> Mapping[str, Tensor]:
        """What a saved run must hold, by name; the same on every process."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put it back; called before the first batch of a run that goes on."""


@runtime_checkable
class Compressor(Protocol):
    """Rewrites a model's weights so that they fit a format."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def compress(self, model: VisionLanguageModel, **options: Any) -> Mapping[str, Any]:
        """Change the model in place -> a report as plain data."""


@runtime_checkable
class Reward(Protocol):
    """Scores an answer against a sample; higher is better."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """A finite number for one answer."""


@runtime_checkable
class DataFilter(Protocol):
    """Keeps or drops training samples, with a reason."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def apply(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Yield (sample, None) to keep it or (sample, reason) to drop it."""


@runtime_checkable
class TableFilter(Protocol):
    """A data filter in two steps, so that many machines can share the first. Optional, beside `DataFilter`.

    Pictures of a sample are absolute paths, URLs or bytes.
    """

    @property
    def version(self) -> str:
        """Names what `describe` computes, options included: facts are kept under it and never computed again."""

    @property
    def waits(self) -> bool:
        """Whether `describe` mostly waits (for a server), so that threads serve it better than processes."""

    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Facts of one sample as JSON data, whatever the others are. Runs in other processes: picklable, no state."""

    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """Facts of all samples in order -> for each None to keep it, or the reason to drop it. Deterministic."""


@runtime_checkable
class Benchmark(Protocol):
    """A task with a score."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def run(self, pipeline: Any, *, limit: int | None = None) -> Mapping[str, float]:
        """Score a pipeline, on the first `limit` items if given -> named figures."""


@runtime_checkable
class Exporter(Protocol):
    """Writes a model, or a part of one, as a file of another runtime."""

    @property
    def name(self) -> str:
        """Unique in its collection; as users write it."""

    def export(self, pipeline: Any, path: Path) -> Mapping[str, Any]:
        """Write `path`, whole or not at all -> a report as plain data: what was written, what was lost or left out.

        The model stays as it was. A model that the runtime cannot express is an error, before anything is written.
        """


@frozen(kw_only=True)
class Event:
    """Something observers may want to know: progress, metrics.

    Attributes:
        kind: "stage-start", "step", "checkpoint", "stage-end" or a plugin's own.
        step: optimizer step, if there is one.
        values: numbers and short texts.
    """

    kind: str
    step: int | None = None
    values: Mapping[str, Any] = field(factory=dict)
