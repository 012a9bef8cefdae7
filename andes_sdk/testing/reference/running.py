"""Reference cache policy, decoder and backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen
from torch import Tensor

if TYPE_CHECKING:
    from andes_sdk.types import Compiled, Layer, Model, Sampler, Session


@frozen
class Recent:
    """Keeps `first` rows of the start and the most recent ones (Xiao et al. 2023, attention sinks)."""

    rows: int
    first: int
    name: str = "reference-recent"
    window: int = 0

    def budget(self, rows: int) -> int | None:
        """At most `rows` of them."""
        return min(rows, self.rows)

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """The same rows in every head."""
        seen = len(layer.positions[0])
        if seen <= self.rows:
            return None
        recent = torch.arange(seen - self.rows + self.first, seen)
        return [torch.cat([torch.arange(self.first), recent])] * len(layer.keys)


@frozen
class PromptLookup:
    """Guesses what followed the last token the last time (Saxena 2023, prompt lookup decoding)."""

    depth: int
    name: str = "reference-lookup"

    def decode(self, session: Session, logits: Tensor, sampler: Sampler, history: list[int]) -> Iterator[list[int]]:
        """One token that is certain and a guess at what follows, verified in one pass."""
        while True:
            start = session.length
            accepted = [sampler.pick(logits, start, history)]
            guess = self.guess([*history, *accepted])
            scores, _ = session.extend([*accepted, *guess])
            for i, token in enumerate(guess):
                if sampler.pick(scores[i], start + 1 + i, [*history, *accepted]) != token:
                    break
                accepted.append(token)
            session.commit(list(range(len(accepted))))
            logits = scores[len(accepted) - 1]
            history += accepted
            yield accepted

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

    def compile(self, model: Model, *, device: str, dtype: str) -> Compiled:
        """As the torch backend does. Raises BackendUnavailable for a device that is absent."""
        from andes_sdk.runtime.torch_backend import TorchBackend

        backend: Any = TorchBackend()
        compiled: Compiled = backend.compile(model, device=device, dtype=dtype)
        return compiled
