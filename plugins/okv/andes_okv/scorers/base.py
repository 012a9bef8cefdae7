"""What a scorer is: rows of one KV head in, a number per row out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head
    from andes_okv.replayed import Replayed


@frozen(eq=False, kw_only=True)
class Scorer(ABC):
    """Says how much each stored row of a KV head is worth; more is better. A subclass says `__call__`.

    Class attributes, which a subclass replaces:
        name: as users write it.
        remembers: `Head.past` and `Head.since` are wanted: what was said last time goes with the rows.
        taps: the rows that enter each layer are wanted, by `made`, or their norms by `replayed`.
        weighs: the output projections are wanted (`Head.outputs`).
        every_query: the window must reach back to where the scorer was last asked.

    Attributes:
        window: how many of the last queries it looks at.
    """

    name: ClassVar[str] = ""
    remembers: ClassVar[bool] = False
    taps: ClassVar[bool] = False
    weighs: ClassVar[bool] = False
    every_query: ClassVar[bool] = False

    window: int = 0

    @abstractmethod
    def __call__(self, head: Head) -> Tensor:
        """(n,) float32, finite."""

    def made(self, layer: int, hidden: Tensor) -> Tensor | None:
        """(T, D) rows entering a layer -> (Hkv, T), which the session stores beside the rows and `Head.given` shows."""
        return None


@frozen(eq=False, kw_only=True)
class ReplayingScorer(Scorer):
    """Each new chunk of rows is replayed, and scored once."""

    remembers: ClassVar[bool] = True

    def __call__(self, head: Head) -> Tensor:
        """(n,) what the replays said."""
        assert head.past is not None
        return head.past

    @abstractmethod
    def replayed(self, head: Replayed) -> Tensor:
        """(c,) for the rows of a chunk that was replayed."""
