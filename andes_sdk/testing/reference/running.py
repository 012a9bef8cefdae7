"""Reference cache policy, decoder and backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.types import Proposal

if TYPE_CHECKING:
    from andes_sdk.types import Cache, Compiled, Draft, Model, Rows


@frozen
class Recent:
    """Keeps `first` rows of the start and the most recent ones (Xiao et al. 2023, attention sinks); its own keeper.

    Attributes:
        heads: KV heads of all layers. slack: rows per head that may pile up before some go.
    """

    rows: int
    first: int
    heads: int
    slack: int = 0
    name: str = "reference-recent"
    window: int = 0
    taps: Sequence[int] = ()
    replays: bool = False

    def budget(self, seen: int) -> int | None:
        """At most `rows` and the slack, in each head."""
        return min(seen, self.rows + self.slack) * self.heads

    def open(self, state: Mapping[str, Tensor] | None = None) -> Recent:
        """Itself."""
        return self

    def state(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """None."""
        return None

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Beyond the budget."""
        return held > (self.rows + self.slack) * self.heads

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """The same rows in every head."""
        return [self._kept(len(layer.positions[0]), len(layer.positions)) for layer in cache.layers]

    def _kept(self, stored: int, heads: int) -> Sequence[Tensor] | None:
        if stored <= self.rows:
            return None
        recent = torch.arange(stored - self.rows + self.first, stored)
        return [torch.cat([torch.arange(self.first), recent])] * heads


@define(eq=False)
class Words:
    """The tokens of a conversation."""

    tokens: list[int] = field(factory=list)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Note the tokens."""
        self.tokens += tokens

    def fork(self) -> Words:
        """A copy."""
        return Words(list(self.tokens))


@frozen
class PromptLookup:
    """Guesses what followed the last token the last time (Saxena 2023, prompt lookup decoding)."""

    depth: int
    name: str = "reference-lookup"
    taps: Sequence[int] = ()

    def open(self) -> Words:
        """A memory for a conversation."""
        return Words()

    def propose(self, drafts: Sequence[Draft], last: Sequence[int]) -> Sequence[Proposal]:
        """A guess for each."""
        histories = [[*cast("Words", draft).tokens, token] for draft, token in zip(drafts, last, strict=True)]
        return [Proposal(tuple(self.guess(history))) for history in histories]

    def guess(self, history: Sequence[int]) -> list[int]:
        """What came after the previous occurrence of the last token."""
        for at in range(len(history) - 2, -1, -1):
            if history[at] == history[-1]:
                return list(history[at + 1 : at + 1 + self.depth])
        return []


@frozen
class Renamed:
    """The torch backend as a plugin."""

    name: str = "reference-backend"
    rows: int | None = None

    def compile(self, model: Model, *, device: str, dtype: str, taps: Sequence[int] = ()) -> Compiled:
        """As the torch backend does. Raises BackendUnavailable for a device that is absent."""
        from andes_sdk.runtime.torch_backend import TorchBackend

        backend: Any = TorchBackend()
        compiled: Compiled = backend.compile(model, device=device, dtype=dtype, taps=taps)
        return compiled
