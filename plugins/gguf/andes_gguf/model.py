"""Llama, Qwen2 and Qwen3 as language models of andes_sdk: transformers' classes on `andes_qwen3.decoder`.

Left out: sliding windows, experts, partial rotary embeddings (refused where a file is read).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from andes_qwen3.decoder import Decoder
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from andes_sdk.errors import ConfigError

from .weights import fill


class Llama(Decoder, LlamaForCausalLM):
    """`transformers.LlamaForCausalLM`."""

    def unmasked(self, embeds: Tensor) -> Tensor:
        """Llama takes no mapping; what has four dimensions is taken as it is."""
        return embeds.new_zeros(1, 1, 1, 1)


class Qwen2(Decoder, Qwen2ForCausalLM):
    """`transformers.Qwen2ForCausalLM`: biases at q, k and v."""


class Qwen3(Decoder, Qwen3ForCausalLM):
    """`transformers.Qwen3ForCausalLM`: a norm on each head of q and k."""


CLASSES: dict[str, tuple[type[Decoder], type[Any]]] = {
    "llama": (Llama, LlamaConfig),
    "qwen2": (Qwen2, Qwen2Config),
    "qwen3": (Qwen3, Qwen3Config),
}
"""Model type -> class and configuration."""


def build(fields: Mapping[str, Any], path: str, *, gradient_checkpointing: bool = False) -> Decoder:
    """A model on torch's default device, with the weights of a file; random ones without a file, none on "meta".

    Args:
        fields: as from `architecture.read_options`.

    Raises:
        ConfigError: transformers refuses the sizes. CheckpointError: tensors that are missing, extra or mis-shaped.
    """
    device = torch.get_default_device()
    if not path or device.type == "meta":
        model = _built(fields)
    else:
        with torch.device("meta"):
            model = _built(fields)
        fill(model, fields, path, device)
    if gradient_checkpointing:
        model.checkpoint_layers()
    return model


def _built(fields: Mapping[str, Any]) -> Decoder:
    given = dict(fields)
    cls, configuration = CLASSES[given.pop("model_type")]
    given["rope_parameters"] = dict(given["rope_parameters"])
    factors = given.get("rope_factors")
    if factors is not None and len(factors) != given["head_dim"] // 2:
        raise ConfigError(f"{len(factors)} factors for heads of {given['head_dim']}", who="gguf.config.rope_factors")
    try:
        return cls(configuration(**given, pad_token_id=None, bos_token_id=None, eos_token_id=None))
    except Exception as error:  # transformers checks sizes with errors of several kinds
        why = f"{type(error).__name__}: {error}"
        raise ConfigError("transformers refuses these sizes", who="gguf.config", why=why) from error
