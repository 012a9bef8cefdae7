"""KVzip: which rows does the model need to repeat its own context?

Source: Kim et al. 2025, arXiv 2505.23416, equation 3 and section 3.2. Each chunk of the context is replayed behind a
prompt that asks to repeat it, and s_i = max over replayed rows j and the query heads of a KV head of
softmax(q_j [k_sinks, k_chunk, k_replay]ᵀ/√d)_i. A row's score is fixed when its chunk has been replayed. So a prompt
that is read in chunks is scored chunk by chunk, beside the rows that are left of those before.
Left out: the chat template's header after the request, and the paper's scores from a fixed set of heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .base import ReplayingScorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.replayed import Replayed


@frozen(eq=False, kw_only=True)
class KVzip(ReplayingScorer):
    """The highest attention in a replay."""

    name: ClassVar[str] = "kvzip"

    def replayed(self, head: Replayed) -> Tensor:
        """(c,)"""
        return head.highest()
