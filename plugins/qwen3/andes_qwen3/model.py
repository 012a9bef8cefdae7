"""Qwen3 as a language model of andes_sdk.

Left out: sliding windows and attention dropout (refused in `configuration.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM

from andes_sdk.errors import ConfigError

from .decoder import Decoder


class Qwen3LanguageModel(Decoder, Qwen3ForCausalLM):
    """`transformers.Qwen3ForCausalLM` that also is an `andes_sdk.types.LanguageModel`.

    Raises:
        ConfigError: the configuration asks for sliding-window layers.
    """

    def __init__(self, config: Qwen3Config) -> None:
        if any(kind != "full_attention" for kind in config.layer_types or ()):
            raise ConfigError("sliding-window layers are not supported", who="qwen3", why=f"{config.layer_types}")
        super().__init__(config)

    @classmethod
    def build(cls, fields: Mapping[str, Any], *, gradient_checkpointing: bool = False) -> Qwen3LanguageModel:
        """Random weights on torch's default device. `fields` come from `configuration.resolve`.

        Raises:
            ConfigError: transformers knows no such activation or kind of rotary embedding.
        """
        try:
            model = cls(Qwen3Config(**fields))
        except (KeyError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            raise ConfigError("transformers refuses this configuration", who="qwen3.config", why=why) from error
        if gradient_checkpointing:
            model.checkpoint_layers()
        return model

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.lm_head.weight is self.model.embed_tokens.weight
