"""The fields of a published AIMv2 `vision_config`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attrs import field, frozen
from attrs.validators import optional

from .fields import VisionFields, blocks, flag, number, only, whole

PRESETS: dict[str, dict[str, object]] = {
    "large": {},  # the defaults below: AndesVL 1B, 2B and 4B
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
    },
}
"""Preset -> what differs from the published values."""


@frozen(kw_only=True)
class AimV2Config(VisionFields):
    """Sizes and switches of the encoder; the defaults are AndesVL's AIMv2-Large.

    Raises:
        ConfigError: a value of the wrong type, sizes that do not divide, window attention.
    """

    plugin: ClassVar[str] = "aimv2"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS

    hidden_size: int = field(default=1024, validator=whole)
    intermediate_size: int = field(default=2816, validator=whole)
    num_hidden_layers: int = field(default=24, validator=whole)
    num_attention_heads: int = field(default=8, validator=whole)
    num_channels: int = field(default=3, validator=only(3))
    patch_size: int = field(default=14, validator=whole)
    temporal_patch_size: int = field(default=1, validator=only(1))
    image_size: int = field(default=448, validator=whole)
    hidden_act: str = field(default="silu", validator=only("silu"))
    rms_norm_eps: float = field(default=1e-5, validator=number)
    qkv_bias: bool = field(default=False, validator=flag)
    use_bias: bool = field(default=False, validator=flag)
    attention_dropout: float = field(default=0.0, validator=only(0.0))
    projection_dropout: float = field(default=0.0, validator=only(0.0))
    initializer_range: float = field(default=0.02, validator=number)
    hidden_stride: int = field(default=2, validator=whole)
    preserve_original_pe: bool = field(default=True, validator=flag)
    interpolate_pe_method: str = field(default="two_dim", validator=only("two_dim", "one_dim"))
    disable_rope: bool = field(default=False, validator=flag)
    rope_theta: float = field(default=10000.0, validator=number)
    fullatt_block_indexes: list[int] | None = field(default=None, validator=blocks)
    window_size: int | None = field(default=None, validator=optional(whole))

    def __attrs_post_init__(self) -> None:
        self.check_heads()
        if self.image_size % self.patch_size:
            raise self.refusal("image_size", self.image_size, f"a multiple of patch_size {self.patch_size}")
        self.check_windows()

    @property
    def table_side(self) -> int:
        """Rows, and columns, of the learned position table."""
        return self.image_size // self.patch_size
