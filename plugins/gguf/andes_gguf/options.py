"""What the plugins' options mean: the types that can be written, and the sizes of a model. Nothing imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from andes_sdk.config import too_large
from andes_sdk.errors import ConfigError

TYPES = ("auto", "F32", "BF16", "F16", "Q8_0", "Q4_0", "TQ1_0", "TQ2_0")
"""`auto` is, tensor by tensor, the smallest without loss."""

MODEL_TYPES = ("llama", "qwen2", "qwen3")

_FIELDS: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "vocab_size": (int,),
    "hidden_size": (int,),
    "intermediate_size": (int,),
    "num_hidden_layers": (int,),
    "num_attention_heads": (int,),
    "num_key_value_heads": (int,),
    "head_dim": (int,),
    "max_position_embeddings": (int,),
    "rms_norm_eps": (float,),
    "rope_parameters": (Mapping,),
    "tie_word_embeddings": (bool,),
    "attention_bias": (bool,),
}
_OPTIONAL: dict[str, tuple[type, ...]] = {"rope_factors": (list, tuple)}


def checked(config: Mapping[str, object]) -> dict[str, Any]:
    """The same fields as plain data.

    Raises:
        ConfigError: naming all that is missing or does not fit.
    """
    kinds = {**_FIELDS, **_OPTIONAL}
    wrong = [f"{key} is missing" for key in _FIELDS if key not in config]
    wrong += [f"{key} is unknown" for key in config if key not in kinds]
    for key, value in config.items():
        expected = kinds.get(key, (object,))
        fits = isinstance(value, expected) and (expected == (bool,) or not isinstance(value, bool))
        positive = isinstance(value, bool) or not isinstance(value, int | float) or 0 < value < float("inf")
        if not fits or not positive or too_large(key, value):
            wrong.append(f"{key} is {value!r}")
    if config.get("model_type") not in MODEL_TYPES:
        wrong.append(f"model_type is none of {', '.join(MODEL_TYPES)}")
    if wrong:
        raise ConfigError("; ".join(wrong), who="gguf.config", fix="give `path`, which states it all")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
