"""What llama.cpp's metadata and tensor names say in the words of transformers, and the other way round. No torch.

llama.cpp rotates pairs of neighbouring rows in the architecture `llama`, and pairs half a head apart in `qwen2` and
`qwen3`, as transformers does in all three: rows of q and k are reordered for the first (`interleave`, `restore`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError, ConfigError

from .container import GgufFile, read
from .options import MODEL_TYPES, checked

FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, written for Llama 3.1 and later."""

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_KNOWN = frozenset({
    *_SIZES.values(), "attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size",
    "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scale_linear",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
})  # fmt: skip
_HARMLESS_AT = {
    "attention.causal": True, "attention.sliding_window": 0, "expert_count": 0, "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_ext_factor": 1.0,
}  # fmt: skip
"""Keys that change what is computed, unless they have this value."""


def stored_name(name: str) -> str | None:
    """transformers' name of a tensor -> llama.cpp's; None if there is none."""
    for ours, theirs in _TOP.items():
        if name == theirs:
            return ours
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    for ours, theirs in _LAYER.items():
        if found and found[2] == theirs:
            return f"blk.{found[1]}.{ours}.{found[3]}"
    return None


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows (heads * d, ...) of q or k, halves of a head apart -> neighbouring pairs."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def restore(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `interleave`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rotated_heads(name: str, fields: Mapping[str, Any]) -> int:
    """How many heads the rows of a tensor must be reordered for; 0 for none."""
    if fields["model_type"] != "llama":
        return 0
    if ".self_attn.q_proj." in name:
        return int(fields["num_attention_heads"])
    return int(fields["num_key_value_heads"]) if ".self_attn.k_proj." in name else 0


# ---------------------------------------------------------------- reading


def read_options(path: str, config: Mapping[str, object]) -> dict[str, Any]:
    """The sizes of the model: those of the file, else those given.

    Raises:
        ConfigError: neither, a field that is missing, unknown or of the wrong type, or sizes that are not the file's.
        CheckpointError: the file cannot be used.
    """
    if not path:
        if not config:
            raise ConfigError("no file is given", who="gguf.path", fix='write {"gguf": {"path": "model.gguf"}}')
        return checked(config)
    found = fields_of(read(path))
    if config and checked(config) != found:
        wrong = sorted(key for key in {*found, *config} if found.get(key) != config.get(key))
        raise ConfigError(f"is not that of the file: {', '.join(wrong)}", who="gguf.config", fix="leave it out")
    return found


def fields_of(file: GgufFile) -> dict[str, Any]:
    """The configuration of a file's model, as plain data (`options.checked`).

    Raises:
        CheckpointError: another architecture, a key that is missing, or one that this plugin does not compute.
    """
    who, data = str(file.path), file.metadata
    kind = data.get("general.architecture")
    if kind not in MODEL_TYPES:
        fix = f"use a file of {', '.join(MODEL_TYPES)}"
        raise CheckpointError(f"has the architecture {kind!r}", who=who, why="this plugin does not know it", fix=fix)
    if data.get("split.count", 1) != 1:
        raise CheckpointError("is one part of several", who=who, fix="join them with llama-gguf-split --merge")
    own = {key.removeprefix(f"{kind}."): value for key, value in data.items() if key.startswith(f"{kind}.")}
    _refuse_unknown(own, kind, who)
    wanted = ["attention.layer_norm_rms_epsilon", *_SIZES.values()]
    missing = [f"{kind}.{key}" for key in wanted if not isinstance(own.get(key), int | float)]
    missing += [name for name in ("token_embd.weight",) if name not in file.tensors]
    if missing:
        raise CheckpointError(f"lacks {', '.join(missing)}", who=who, fix="convert the model again")
    try:
        return _fields(file, kind, own)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise CheckpointError("has metadata that cannot be", who=who, why=why, fix="convert the model again") from error


def _fields(file: GgufFile, kind: str, own: Mapping[str, Any]) -> dict[str, Any]:
    who = str(file.path)
    sizes = {ours: own[theirs] for ours, theirs in _SIZES.items()}
    head = own.get("attention.key_length", sizes["hidden_size"] // sizes["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, head) != head:
            raise CheckpointError(f"has {kind}.{key} {own[key]}, heads of {head}", who=who, why="it must be the same")
    rows, tokens = file.tensors["token_embd.weight"].shape[0], len(file.metadata.get("tokenizer.ggml.tokens", ()))
    if rows < max(tokens, own.get("vocab_size", 0)):
        why = f"{rows} embeddings for {max(tokens, own.get('vocab_size', 0))} tokens"
        raise CheckpointError("has sizes that cannot be", who=who, why=why, fix="convert the model again")
    fields = {
        "model_type": kind,
        "vocab_size": rows,
        **sizes,
        "num_key_value_heads": own.get("attention.head_count_kv", sizes["num_attention_heads"]),
        "head_dim": head,
        "rms_norm_eps": _decimal(own["attention.layer_norm_rms_epsilon"]),
        "rope_parameters": _rope(own, sizes["max_position_embeddings"], kind, who),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
    }
    if FACTORS in file.tensors:
        fields["rope_factors"] = [_decimal(x) for x in file.array(FACTORS).tolist()]
    last = f"blk.{sizes['num_hidden_layers'] - 1}.attn_norm.weight"
    if sizes["num_hidden_layers"] > 0 and last not in file.tensors:
        raise CheckpointError("has sizes that cannot be", who=who, why=f"no tensor {last}")
    try:
        fields = checked(fields)
    except ConfigError as error:
        raise CheckpointError("has sizes that cannot be", who=who, why=error.what) from None
    heads, groups = fields["num_attention_heads"], fields["num_key_value_heads"]
    if heads % groups:
        why = f"{groups} KV heads for {heads} query heads"
        raise CheckpointError("has sizes that cannot be", who=who, why=why)
    return fields


def _refuse_unknown(own: Mapping[str, Any], kind: str, who: str) -> None:
    for key, value in own.items():
        if key in _KNOWN or (key in _HARMLESS_AT and value == _HARMLESS_AT[key]):
            continue
        why = "this plugin does not compute what it asks for"
        raise CheckpointError(f"has {kind}.{key} = {value!r}", who=who, why=why, fix="use llama.cpp for this file")


def _decimal(value: float) -> float:
    """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope(own: Mapping[str, Any], context: int, kind: str, who: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _decimal(own.get("rope.freq_base", 10_000.0))}
    # as llama.cpp: linear unless it is said, by the old key where there is no other, by 0 not at all
    scaling = own.get("rope.scaling.type", "linear")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0))
    if scaling == "none" or (scaling == "linear" and not factor):
        return rope
    if scaling not in ("linear", "yarn") or not factor:
        why = "linear and yarn are read, with their factor"
        raise CheckpointError(f"scales its positions by {kind}.rope.scaling.type {scaling!r}", who=who, why=why)
    rope |= {"rope_type": scaling, "factor": _decimal(factor)}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = own.get("rope.scaling.original_context_length", context)
        for key in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{key}" in own:
                rope[key] = _decimal(own[f"rope.scaling.yarn_{key}"])
    return rope


# ---------------------------------------------------------------- writing


def metadata_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `fields_of`: key -> int, float or str, without rotary factors.

    Raises:
        ConfigError: a rotary embedding that llama.cpp has no words for.
    """
    kind, rope = fields["model_type"], dict(fields["rope_parameters"])
    head = fields["head_dim"]
    made = {theirs: fields[ours] for ours, theirs in _SIZES.items()}
    made |= {
        "vocab_size": fields["vocab_size"],
        "attention.head_count_kv": fields["num_key_value_heads"],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": fields["rms_norm_eps"],
        "rope.dimension_count": head,
        "rope.freq_base": float(rope.pop("rope_theta")),
    }
    form = rope.pop("rope_type", "default")
    if form in ("linear", "yarn"):
        made |= {"rope.scaling.type": form, "rope.scaling.factor": float(rope.pop("factor"))}
    if form == "yarn":
        original = rope.pop("original_max_position_embeddings", fields["max_position_embeddings"])
        made["rope.scaling.original_context_length"] = original
        betas = {key: rope.pop(key, None) for key in ("beta_fast", "beta_slow")}
        made |= {f"rope.scaling.yarn_{key}": float(value) for key, value in betas.items() if value}
        if rope.get("attention_factor") is None:
            rope.pop("attention_factor", None)
    if form not in ("default", "linear", "yarn", "llama3") or (rope and form != "llama3"):
        left = ", ".join(f"{k}={v}" for k, v in rope.items())
        raise ConfigError(f"rope_type {form!r} with {left or 'nothing'} cannot be written", who="gguf-export")
    return {f"{kind}.{key}": value for key, value in made.items()}
