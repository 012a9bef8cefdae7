"""StreamingLLM: the first rows and the latest.

Source: Xiao et al. 2024, arXiv 2309.17453, section 3.2. Kept: attention sinks (which every policy here keeps) and the
most recent rows. Left out: positions inside the cache; rows keep those they were made at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head


@frozen(eq=False, kw_only=True)
class Streaming(Scorer):
    """The later, the better."""

    name: ClassVar[str] = "streaming"

    def __call__(self, head: Head) -> Tensor:
        """s_i = i, the row's position (n,)."""
        return head.positions.float()
