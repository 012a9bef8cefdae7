"""Presets, and published configuration fields turned into checked facts. Nothing here imports torch."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from andes_sdk.config import too_large
from andes_sdk.errors import ConfigError

_SIZES = {  # hidden, inner, layers, query heads
    "0.6b": (1024, 3072, 28, 16),
    "1.7b": (2048, 6144, 28, 16),
    "4b": (2560, 9728, 36, 32),
    "tiny": (48, 96, 2, 4),
}

_COMMON: dict[str, object] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}


def _preset(name: str) -> dict[str, object]:
    hidden, inner, layers, heads = _SIZES[name]
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    tiny = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "max_position_embeddings": 4096}
    return {**sizes, **_COMMON, **(tiny if name == "tiny" else {})}


PRESETS: dict[str, dict[str, object]] = {name: _preset(name) for name in _SIZES}
"""Preset -> fields of `transformers.Qwen3Config` (with `rope_theta` and `rope_scaling` in the published spelling)."""

BOOKKEEPING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "add_cross_attention", "architectures",
    "attn_implementation", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty",
    "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "is_decoder", "is_encoder_decoder",
    "label2id", "length_penalty", "max_length", "max_window_layers", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "pad_token_id", "prefix", "problem_type", "pruned_heads", "remove_invalid_values",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "sep_token_id", "sliding_window",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p",
    "use_bfloat16", "use_cache",
})  # fmt: skip
"""Keys that published configurations carry and that do not change what the model computes here."""

_CHECKED = ("model_type", "use_sliding_window", "layer_types", "attention_dropout", "rope_parameters")


def resolve(preset: str, overrides: Mapping[str, object], ignore: Collection[str] = ()) -> dict[str, Any]:
    """Preset and published fields -> arguments of `transformers.Qwen3Config`.

    Args:
        ignore: keys that the user says have no effect.

    Raises:
        ConfigError: an unknown preset or key, a value of the wrong type, or something this plugin does not compute
            (sliding windows, attention dropout, another model type).
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"unknown preset {preset!r}", who="qwen3.preset", fix=_suggest(preset, PRESETS) or f"one of {list(PRESETS)}"
        )
    fields = dict(PRESETS[preset])
    for key, value in overrides.items():
        if key in fields:
            fields[key] = _typed(key, value, PRESETS[preset][key])
        elif key not in BOOKKEEPING and key not in _CHECKED and key not in ignore:
            known = [*fields, *_CHECKED, *BOOKKEEPING]
            fix = _suggest(key, known) or f"the fields that matter are {sorted([*fields, *_CHECKED])}"
            fix += f'; if it changes no number, pass plugins=[{{"qwen3": {{"ignore": [{key!r}]}}}}]'
            raise ConfigError(f"unknown field {key!r}", who="qwen3.config", fix=fix)
    _refuse_unsupported(overrides)
    _check_heads(fields)
    fields["rope_parameters"] = _rope(fields.pop("rope_theta"), fields.pop("rope_scaling"), overrides)
    return fields


def without_effect(overrides: Mapping[str, object], ignore: Collection[str] = ()) -> dict[str, str]:
    """For `andes_explain`: published keys that change nothing here."""
    idle = sorted(key for key in overrides if key in BOOKKEEPING or key in ignore)
    return {"without effect": ", ".join(idle)} if idle else {}


def _suggest(word: str, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _typed(key: str, value: object, example: object) -> object:
    if key == "rope_scaling":
        kinds: tuple[type, ...] = (Mapping, type(None))
    elif isinstance(example, float):
        kinds = (float, int)
    else:
        kinds = (type(example),)
    fits = isinstance(value, kinds) and (isinstance(example, bool) or not isinstance(value, bool))
    if not fits:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"expected {expected}, got {value!r}", who=f"qwen3.config.{key}")
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
        raise ConfigError(f"must be positive, got {value!r}", who=f"qwen3.config.{key}")
    if too_large(key, value):
        raise ConfigError(f"is {value}", who=f"qwen3.config.{key}", why="no model is so large")
    return float(value) if isinstance(example, float) and isinstance(value, int) else value


def _refuse_unsupported(given: Mapping[str, object]) -> None:
    kind = given.get("model_type", "qwen3")
    if kind != "qwen3":
        raise ConfigError(
            f"model_type {kind!r} is another family", who="qwen3.config", fix="use the plugin of that family"
        )
    layers = given.get("layer_types")
    if layers is not None and not isinstance(layers, list | tuple):
        raise ConfigError(f"expected list, got {layers!r}", who="qwen3.config.layer_types")
    if given.get("use_sliding_window") or any(layer != "full_attention" for layer in layers or ()):
        raise ConfigError(
            "sliding-window layers are not supported",
            who="qwen3.config",
            why="the runtime gives every layer the same rows to attend to",
            fix="use a checkpoint with use_sliding_window false; no dense Qwen3 was published with windows",
        )
    if given.get("attention_dropout"):
        raise ConfigError(
            "attention_dropout must be 0",
            who="qwen3.config",
            why="attention is computed by the runtime, which has no dropout: the value would have no effect",
        )


def _check_heads(fields: Mapping[str, Any]) -> None:
    heads, groups = fields["num_attention_heads"], fields["num_key_value_heads"]
    if heads % groups:
        raise ConfigError(
            f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})", who="qwen3.config"
        )


def _rope(theta: object, scaling: object, given: Mapping[str, object]) -> dict[str, object]:
    """Both spellings: `rope_theta` with `rope_scaling`, and transformers 5's `rope_parameters`."""
    parameters = given.get("rope_parameters")
    if parameters is not None:
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"expected Mapping, got {parameters!r}", who="qwen3.config.rope_parameters")
        stated = parameters.get("rope_theta", theta)
        if "rope_theta" in given and stated != theta:
            raise ConfigError(
                f"rope_theta is {theta} here and {stated} in rope_parameters",
                who="qwen3.config",
                fix="give one of them",
            )
        return {"rope_theta": theta, "rope_type": "default", **parameters}
    rope = dict(scaling) if isinstance(scaling, Mapping) else {}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    return {"rope_theta": theta, **rope}
