"""A vision encoder: pictures as patches -> features for the projector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen
from attrs.validators import ge

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk.types import VisionEncoder


@frozen(eq=False, kw_only=True)
class Example:
    """See places and means. Shortest use: `Pipeline.from_plugins(["example", "mlp", "qwen3"])`."""

    contract = "1.1"
    testing = {"width": 32, "patch_size": 8}  # noqa: RUF012 - not annotated: attrs must not take it for an option

    width: int = field(default=256, validator=ge(8), metadata={"help": "features per patch, a multiple of 4"})
    patch_size: int = field(default=14, validator=ge(1), metadata={"help": "side of a patch in pixels"})

    @hookimpl
    def andes_vision_encoder(self) -> VisionEncoder:
        """Random weights on torch's default device."""
        from .model import MeanEncoder

        return MeanEncoder(self.width, self.patch_size)
