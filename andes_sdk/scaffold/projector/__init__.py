"""A projector: features of an encoder -> rows that the language model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import Projector, TextSpec, VisionSpec


@frozen(eq=False, kw_only=True)
class Example:
    """Merge narrowly. Shortest use: `Pipeline.from_plugins(["aimv2", "example", "qwen3"])`."""

    contract = "1.1"

    rank: int = field(default=64, validator=ge(1), metadata={"help": "width of the bottleneck"})

    @hookimpl
    def andes_projector(self, vision: VisionSpec, text: TextSpec) -> Projector:
        """Sizes follow from the modules on both sides."""
        from .model import Bottleneck

        return Bottleneck(vision.width * vision.merge**2, self.rank, text.width)
