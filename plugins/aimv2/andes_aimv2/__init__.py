"""The AIMv2 vision encoder of AndesVL 1B, 2B and 4B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from andes_sdk import hookimpl

from .config import PRESETS, AimV2Config

if TYPE_CHECKING:
    from andes_sdk import Plan
    from andes_sdk.types import VisionEncoder

__all__ = ["AimV2", "AimV2Config"]


@frozen(eq=False, kw_only=True)
class AimV2:
    """AIMv2 at native resolution. Shortest use: `Pipeline.from_plugins(["aimv2", "mlp", "qwen3"])`.

    Raises:
        ConfigError: on construction, for a preset or configuration that does not fit.
    """

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"preset": "tiny"}

    preset: str = field(default="large", metadata={"help": f"sizes to start from: {', '.join(PRESETS)}"})
    config: Mapping[str, object] = field(
        factory=dict, metadata={"help": "fields of a published vision_config that override the preset"}
    )
    ignore: list[str] = field(
        factory=list, metadata={"help": "keys of `config` that are not known here and change no number"}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute blocks in the backward pass: less memory, more time"}
    )

    def __attrs_post_init__(self) -> None:
        self.resolved()

    def resolved(self) -> AimV2Config:
        """Preset and `config` together."""
        return AimV2Config.resolved(self.preset, self.config, self.ignore)

    @hookimpl
    def andes_vision_encoder(self) -> VisionEncoder:
        """Build the encoder with random weights."""
        from .model import AimV2Encoder

        encoder = AimV2Encoder(self.resolved())
        encoder.gradient_checkpointing = self.gradient_checkpointing
        return encoder

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Say what the configuration comes to."""
        config = self.resolved()
        facts = config.explained(
            "AIMv2",
            sampling=config.interpolate_pe_method,
            activation="SwiGLU (SiLU)",
            gradient_checkpointing=self.gradient_checkpointing,
        )
        return {**facts, **config.without_effect(self.config, self.ignore)}
