"""AndesVL for transformers' Auto classes, without remote code.

    import andes_andesvl.hf
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)

Both layouts open: ours and the published one. The modules are those of the plugins, under the same names; attention is
transformers' own, as are its caches and `generate`.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from andes_andesvl.hf.model import (
    MODELS,
    AndesVLAimv2Qwen3Config,
    AndesVLForConditionalGeneration,
    AndesVLSiglip2Qwen3Config,
)
from andes_andesvl.hf.processor import AndesVLProcessor


def register() -> None:
    """Tell transformers' Auto classes about both model types; calling it again changes nothing."""
    for model in MODELS:
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
        AutoProcessor.register(config, AndesVLProcessor, exist_ok=True)


register()

__all__ = [
    "AndesVLAimv2Qwen3Config",
    "AndesVLForConditionalGeneration",
    "AndesVLProcessor",
    "AndesVLSiglip2Qwen3Config",
    "register",
]
