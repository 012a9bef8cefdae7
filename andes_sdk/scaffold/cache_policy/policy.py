"""The first rows hold much of the attention, the latest ones the context (Xiao et al. 2023, arXiv 2309.17453).

A policy only decides; the session moves the memory. `keep` is called for each layer after rows were committed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from andes_sdk.types import Layer


@frozen
class Window:
    """The first `sinks` rows and the latest `recent` ones, the same in every layer and head.

    Attributes:
        window: how many of the last queries `keep` wants to see; this policy needs none.
    """

    sinks: int
    recent: int
    name = "example"
    window = 0

    def budget(self, rows: int) -> int | None:
        """Rows per head once `rows` have been seen."""
        return min(rows, self.sinks + self.recent)

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """Indices of the rows that stay, ascending, for each KV head; None where all stay."""
        stored = len(layer.positions[0])
        if stored <= self.sinks + self.recent:
            return None
        chosen = torch.cat([torch.arange(self.sinks), torch.arange(stored - self.recent, stored)])
        return [chosen] * len(layer.keys)
