"""The projector of AndesVL: 2x2 blocks of patches, two linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Projector, TextSpec, VisionSpec


@frozen(eq=False, kw_only=True)
class MLP:
    """Merge each block of patches into one row and map it to the language model's width.

    Shortest use: `Pipeline.from_plugins(["aimv2", "mlp", "qwen3"])`. No options: its sizes follow from the others.
    """

    contract = "1.1"

    @hookimpl
    def andes_projector(self, vision: VisionSpec, text: TextSpec) -> Projector:
        """Build the projector between these two modules."""
        from .model import PixelShuffleMLP

        return PixelShuffleMLP(vision.width, text.width, vision.merge)
