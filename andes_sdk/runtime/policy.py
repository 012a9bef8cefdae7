"""The default cache policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from andes_sdk.types import Layer


@frozen
class KeepAll:
    """Keeps every row: exact attention, memory in proportion to the context."""

    name: str = "keep-all"
    window: int = 0

    def budget(self, rows: int) -> int | None:
        """No limit."""
        return None

    def keep(self, layer: Layer) -> Sequence[Tensor] | None:
        """Everything."""
        return None
