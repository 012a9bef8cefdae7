"""The published AndesVL layout: its `config.json` to plugins, and a model back to such a `config.json`.

Field names and defaults are those of the published AndesVL configuration and evaluation code; fields that a published
configuration leaves out have the defaults of the classes that wrote it, not those of our presets.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from andes_sdk.config import too_large
from andes_sdk.errors import CheckpointError

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan

ENCODERS = {"andesvl-aimv2-qwen3": "aimv2", "andesvl-siglip2-qwen3": "siglip2"}
"""Published model type -> plugin of its vision encoder."""

ARCHITECTURE = "AndesVLForConditionalGeneration"

QWEN3_DEFAULTS: dict[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
"""What transformers' Qwen3Config means by a field that is not there, where that is not what published models have."""


ENCODER_DEFAULTS: dict[str, dict[str, object]] = {
    "aimv2": {"interpolate_pe_method": "one_dim", "preserve_original_pe": False, "image_size": 224},
    "siglip2": {},
}
"""The same for encoders: the published class default. Other fields of other value would show in the tensors' shapes."""

DTYPES = ("float32", "bfloat16", "float16")


def plugin_items(config: Mapping[str, Any], *, who: str) -> list[dict[str, dict[str, Any]]]:
    """A published `config.json` -> plugins with options. Unknown keys at its top level have no effect.

    Raises:
        CheckpointError: another model type, or parts that are absent.
    """
    kind = str(config.get("model_type"))
    if kind not in ENCODERS:
        close = difflib.get_close_matches(kind, ENCODERS, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(ENCODERS)}"
        raise CheckpointError(f"model_type {kind!r} is not AndesVL's", who=who, fix=fix)
    vision = ENCODER_DEFAULTS[ENCODERS[kind]] | _part(config, "vision_config", who=who)
    text = _part(config, "text_config", "llm_config", who=who)
    tied = config.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise CheckpointError(f"tie_word_embeddings is {tied!r}", who=who, fix="write true or false")
    return [{ENCODERS[kind]: {"config": vision}}, {"mlp": {}}, {"qwen3": {"config": text_fields(text, tied=tied)}}]


def text_fields(text: Mapping[str, Any], *, tied: bool | None) -> dict[str, Any]:
    """A published `text_config` with what its class means by absent fields; `tied` is what stands at the top level."""
    fields = QWEN3_DEFAULTS | ({} if tied is None else {"tie_word_embeddings": tied}) | dict(text)
    if "rope_parameters" in text and "rope_theta" not in text:
        del fields["rope_theta"]
    return fields


def _part(config: Mapping[str, Any], *names: str, who: str) -> dict[str, Any]:
    found = next((config[name] for name in names if name in config), None)
    if not isinstance(found, dict):
        raise CheckpointError(f"has no {names[0]}", who=who, why=f"{found!r} stands there", fix="fetch it again")
    for field, value in found.items():
        if too_large(field, value):
            raise CheckpointError(f"{names[0]}.{field} is {value}", who=who, why="no model is so large")
    return found


def dtype(config: Mapping[str, Any], *, who: str) -> str:
    """Precision stated in a `config.json`; float32 where none is."""
    text = config.get("text_config") or config.get("llm_config")
    for part in (config, text if isinstance(text, dict) else {}):
        stated = part.get("torch_dtype") or part.get("dtype")
        if stated is not None:
            name = stated.removeprefix("torch.") if isinstance(stated, str) else stated
            if name not in DTYPES:
                why = "it leaves the precision to the reader" if name == "auto" else ""
                fix = f"write one of {', '.join(DTYPES)} there"
                raise CheckpointError(f"torch_dtype is {stated!r}", who=who, why=why, fix=fix)
            return str(name)
    return "float32"


def same_modules(config: Mapping[str, Any], plan: Plan) -> bool:
    """Whether a published `config.json` describes the modules of this plan."""
    try:
        items = {name: options for item in plugin_items(config, who="") for name, options in item.items()}
    except CheckpointError:
        return False
    own = {p.name: p.options for p in plan.plugins}
    modules = ("preset", "config")
    return all(
        name in own and {k: v for k, v in own[name].items() if k in modules} == {k: v for k, v in options.items() if v}
        for name, options in items.items()
    )


def config_of(model: VisionLanguageModel, plan: Plan, *, dtype: str) -> dict[str, Any] | None:
    """A `config.json` in the published form, or None for modules that the published form cannot describe."""
    owners = {plan.owner(f"andes_{slot}") for slot in ("vision_encoder", "projector", "language_model")}
    kinds = {encoder: kind for kind, encoder in ENCODERS.items()}
    encoder = next((name for name in kinds if owners == {name, "mlp", "qwen3"}), None)
    vision, text = _fields(model.vision_encoder), _fields(model.language_model)
    if encoder is None or vision is None or text is None or model.senses:
        return None
    return {
        "architectures": [ARCHITECTURE],
        "model_type": kinds[encoder],
        "torch_dtype": dtype,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "image_token_id": model.tokenizer.placeholder("image"),
        "eos_token_id": [model.tokenizer.eos, model.tokenizer.pad],  # both end an answer, as in published Qwen3
        "pad_token_id": model.tokenizer.pad,
        "vision_config": vision,
        "text_config": {key: value for key, value in text.items() if key not in ("torch_dtype", "dtype")},
    }


def _fields(module: Any) -> dict[str, Any] | None:
    config = getattr(module, "config", None)
    if config is None:
        return None
    if attrs.has(type(config)):
        return attrs.asdict(config)
    return dict(config.to_diff_dict()) if hasattr(config, "to_diff_dict") else None


SIDE_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".md", ".py"})
"""Files that travel with a published checkpoint, as bytes: none is run. A licence has no suffix and travels too."""


def side_files(folder: Path) -> list[Path]:
    """Files of a published checkpoint that hold no weights."""
    ours = {"andes.json"}
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name not in ours
        and not path.name.endswith(".index.json")
        and (path.suffix in SIDE_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE")))
    )
