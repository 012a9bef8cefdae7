"""The SigLIP2 vision encoder of AndesVL 0.6B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from attrs import field, frozen

from andes_sdk import hookimpl

from .config import PRESETS, SigLIP2Config

if TYPE_CHECKING:
    from andes_sdk import Plan
    from andes_sdk.types import VisionEncoder

__all__ = ["SigLIP2", "SigLIP2Config"]


@frozen(eq=False, kw_only=True)
class SigLIP2:
    """SigLIP2 at native resolution. Shortest use: `Pipeline.from_plugins(["siglip2", "mlp", "qwen3"])`.

    Raises:
        ConfigError: on construction, for a preset or configuration that does not fit.
    """

    contract = "1.1"
    testing: ClassVar[Mapping[str, object]] = {"preset": "tiny"}

    preset: str = field(default="base", metadata={"help": f"sizes to start from: {', '.join(PRESETS)}"})
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

    def resolved(self) -> SigLIP2Config:
        """Preset and `config` together."""
        return SigLIP2Config.resolved(self.preset, self.config, self.ignore)

    @hookimpl
    def andes_vision_encoder(self) -> VisionEncoder:
        """Build the encoder with random weights."""
        from .model import SigLIP2Encoder

        encoder = SigLIP2Encoder(self.resolved())
        encoder.gradient_checkpointing = self.gradient_checkpointing
        return encoder

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """Say what the configuration comes to."""
        config = self.resolved()
        gelu = "exact GELU" if config.hidden_act == "gelu" else "tanh-approximated GELU"
        facts = config.explained(
            "SigLIP2",
            sampling="bicubic",
            activation=f"{gelu} (hidden_act)",
            gradient_checkpointing=self.gradient_checkpointing,
        )
        return {**facts, **config.without_effect(self.config, self.ignore)}
