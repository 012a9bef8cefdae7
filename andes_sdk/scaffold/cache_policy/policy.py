"""The first rows hold much of the attention, the latest ones the context (Xiao et al. 2023, arXiv 2309.17453).

A policy only decides; the session moves the memory. Moving it costs time, so rows pile up to `slack` before it is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor

from andes_sdk.types import Cache, Layer


@frozen
class Window:
    """The first `sinks` rows and the latest `recent` ones, the same in every layer and head.

    It needs no memory of its own, so it is its own keeper.

    Attributes:
        slack: rows per head that may pile up before some go. heads: KV heads of all layers.
        window: how many of the last queries `keep` wants to see; this policy needs none.
    """

    sinks: int
    recent: int
    slack: int
    heads: int
    name = "example"
    window = 0
    taps = ()
    replays = False

    def budget(self, seen: int) -> int | None:
        """Rows of all layers and heads together."""
        return min(seen, self.sinks + self.recent + self.slack) * self.heads

    def open(self, state: Mapping[str, Tensor] | None = None) -> Window:
        """A memory for one session."""
        return self

    def state(self) -> Mapping[str, Tensor]:
        """What `open` needs to go on: nothing."""
        return {}

    def score(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Rows are judged by their place alone."""
        return None

    def due(self, seen: int, held: int, reading: bool) -> bool:
        """Once more rows have piled up than the budget allows."""
        return held > (self.sinks + self.recent + self.slack) * self.heads

    def keep(self, cache: Cache) -> Sequence[Sequence[Tensor] | None]:
        """Per layer and head the indices of the rows that stay, ascending; None where all stay."""
        return [self.choose(layer) for layer in cache.layers]

    def choose(self, layer: Layer) -> Sequence[Tensor] | None:
        """Indices for one layer."""
        stored = len(layer.positions[0])
        if stored <= self.sinks + self.recent:
            return None
        chosen = torch.cat([torch.arange(self.sinks), torch.arange(stored - self.recent, stored)])
        return [chosen] * len(layer.positions)
