"""KVzip+: KVzip, weighed by what a row adds to the residual stream.

Source: Jegou and Jeblick 2026, arXiv 2601.07891, equation 2: s_i = max over j of A_ji·‖W_O v_i‖₂ / ‖h_j‖₂, over
replayed rows j and the query heads of a KV head. h_j is taken as the residual stream that enters the layer, to which A
and W_O v add. kvpress takes it after the layer's RMSNorm, where its norm hardly differs from row to row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .kvzip import KVzip

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.replayed import Replayed


@frozen(eq=False, kw_only=True)
class KVzipPlus(KVzip):
    """The largest share that a row has in a replayed row's residual stream."""

    name: ClassVar[str] = "kvzip+"
    taps: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    def replayed(self, head: Replayed) -> Tensor:
        """(c,)"""
        assert head.outputs is not None
        assert head.norms is not None
        lengths = head.outputs.euclidean(head.layer.index, head.index, head.values)  # (g, c)
        return head.highest(1 / head.norms, lengths)
