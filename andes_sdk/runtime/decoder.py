"""The default decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk.types import Proposal

if TYPE_CHECKING:
    from andes_sdk.types import Draft, Rows

NOTHING = Proposal()


@frozen
class Autoregressive:
    """One token at a time: nothing is proposed, and nothing remembered."""

    name: str = "autoregressive"
    taps: Sequence[int] = ()

    def open(self) -> Autoregressive:
        """Itself."""
        return self

    def propose(self, drafts: Sequence[Draft], last: Sequence[int]) -> Sequence[Proposal]:
        """Nothing."""
        return [NOTHING] * len(last)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        """Nothing to remember."""

    def fork(self) -> Autoregressive:
        """Itself."""
        return self
