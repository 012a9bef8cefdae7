"""Key norm: keys of small norm get much attention.

Source: Devoto et al. 2024, arXiv 2406.11430, section 3: s_i = −‖k_i‖₂. Norms are the same before and after rotation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from .base import Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from andes_okv.heads import Head


@frozen(eq=False, kw_only=True)
class KeyNorm(Scorer):
    """The shorter the key, the better."""

    name: ClassVar[str] = "keynorm"

    def __call__(self, head: Head) -> Tensor:
        """(n,)"""
        lengths: Tensor = head.keys.norm(dim=-1)
        return -lengths
