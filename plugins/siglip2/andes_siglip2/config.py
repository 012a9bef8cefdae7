"""The fields of a published SigLIP2 `vision_config`, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from andes_aimv2.fields import BOOKKEEPING, VisionFields, blocks, flag, number, only, whole
from attrs import field, frozen
from attrs.validators import optional

PRESETS: dict[str, dict[str, object]] = {
    "base": {},  # the defaults below: AndesVL 0.6B
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_patches": 16,
    },
}
"""Preset -> what differs from the published values."""

IGNORED = BOOKKEEPING | {"image_size", "vision_use_head"}
"""Keys without effect here, also `image_size`, since the table's size is `num_patches`, and the pooling head, which
AndesVL does not have."""


@frozen(kw_only=True)
class SigLIP2Config(VisionFields):
    """Sizes and switches of the encoder; the defaults are AndesVL's SigLIP2-Base.

    Raises:
        ConfigError: a value of the wrong type, sizes that do not divide, window attention.
    """

    plugin: ClassVar[str] = "siglip2"
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = PRESETS
    ignored: ClassVar[frozenset[str]] = IGNORED

    hidden_size: int = field(default=768, validator=whole)
    intermediate_size: int = field(default=3072, validator=whole)
    num_hidden_layers: int = field(default=12, validator=whole)
    num_attention_heads: int = field(default=12, validator=whole)
    num_channels: int = field(default=3, validator=only(3))
    patch_size: int = field(default=16, validator=whole)
    num_patches: int = field(default=1024, validator=whole)
    hidden_act: str = field(default="gelu_pytorch_tanh", validator=only("gelu_pytorch_tanh", "gelu"))
    layer_norm_eps: float = field(default=1e-6, validator=number)
    attention_dropout: float = field(default=0.0, validator=only(0.0))
    initializer_range: float = field(default=0.02, validator=number)
    hidden_stride: int = field(default=2, validator=whole)
    preserve_original_pe: bool = field(default=True, validator=flag)
    disable_rope: bool = field(default=False, validator=flag)
    rope_theta: float = field(default=10000.0, validator=number)
    fullatt_block_indexes: list[int] | None = field(default=None, validator=blocks)
    window_size: int | None = field(default=None, validator=optional(whole))

    def __attrs_post_init__(self) -> None:
        self.check_heads()
        if self.table_side**2 != self.num_patches:
            raise self.refusal("num_patches", self.num_patches, "a square number (the position table is square)")
        self.check_windows()

    @property
    def table_side(self) -> int:
        """Rows, and columns, of the learned position table."""
        return math.isqrt(self.num_patches)
