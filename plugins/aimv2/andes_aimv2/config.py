"""The fields of a published AIMv2 `vision_config`, checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from attrs import Attribute, field, fields_dict, frozen
from attrs.validators import optional

from andes_sdk.errors import ConfigError

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

BOOKKEEPING = frozenset(
    """_attn_implementation_autoset _name_or_path add_cross_attention architectures attn_implementation auto_map
    bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length max_pixels min_length min_pixels model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
    output_scores pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache""".split()  # noqa: SIM905
)
"""Keys without effect here: what transformers writes into every config.json; pixel limits, read by preprocessing."""

Validator = Callable[[Any, "Attribute[Any]", Any], None]


def _refuse(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"expected {wanted}, got {value!r}", who=f"aimv2.config.{name}")


def _whole(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if type(value) is not int or value < 1:
        raise _refuse(attribute.name, value, "a whole number of at least 1")


def _number(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise _refuse(attribute.name, value, "a number above 0")


def _flag(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise _refuse(attribute.name, value, "true or false")


def _blocks(instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and not (isinstance(value, list | tuple) and all(type(block) is int for block in value)):
        raise _refuse(attribute.name, value, "null or a list of block numbers")


def _only(*choices: object) -> Validator:
    def check(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or value not in choices:
            raise _refuse(attribute.name, value, " or ".join(map(repr, choices)))

    return check


@frozen(kw_only=True)
class AimV2Config:
    """Sizes and switches of the encoder; the defaults are AndesVL's AIMv2-Large.

    Raises:
        ConfigError: a value of the wrong type, sizes that do not divide, window attention.
    """

    hidden_size: int = field(default=1024, validator=_whole)
    intermediate_size: int = field(default=2816, validator=_whole)
    num_hidden_layers: int = field(default=24, validator=_whole)
    num_attention_heads: int = field(default=8, validator=_whole)
    num_channels: int = field(default=3, validator=_only(3))
    patch_size: int = field(default=14, validator=_whole)
    temporal_patch_size: int = field(default=1, validator=_only(1))
    image_size: int = field(default=448, validator=_whole)
    hidden_act: str = field(default="silu", validator=_only("silu"))
    rms_norm_eps: float = field(default=1e-5, validator=_number)
    qkv_bias: bool = field(default=False, validator=_flag)
    use_bias: bool = field(default=False, validator=_flag)
    attention_dropout: float = field(default=0.0, validator=_only(0.0))
    projection_dropout: float = field(default=0.0, validator=_only(0.0))
    initializer_range: float = field(default=0.02, validator=_number)
    hidden_stride: int = field(default=2, validator=_whole)
    preserve_original_pe: bool = field(default=True, validator=_flag)
    interpolate_pe_method: str = field(default="two_dim", validator=_only("two_dim", "one_dim"))
    disable_rope: bool = field(default=False, validator=_flag)
    rope_theta: float = field(default=10000.0, validator=_number)
    fullatt_block_indexes: list[int] | None = field(default=None, validator=_blocks)
    window_size: int | None = field(default=None, validator=optional(_whole))

    def __attrs_post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            wanted = f"a divisor of hidden_size {self.hidden_size}"
            raise _refuse("num_attention_heads", self.num_attention_heads, wanted)
        if not self.disable_rope and self.head_dim % 4:
            wanted = "heads of a multiple of 4 features (rotary positions: rows and columns, in pairs)"
            raise _refuse("num_attention_heads", self.num_attention_heads, wanted)
        if self.image_size % self.patch_size:
            raise _refuse("image_size", self.image_size, f"a multiple of patch_size {self.patch_size}")
        # A window size alone changes nothing: published configurations carry one and leave every block full.
        full = self.fullatt_block_indexes
        if full is not None and set(full) != set(range(self.num_hidden_layers)):
            raise ConfigError(
                "window attention is not supported",
                who="aimv2.config.fullatt_block_indexes",
                why=f"only blocks {full} of {self.num_hidden_layers} would see the whole image",
                fix="leave fullatt_block_indexes out, as the published models do",
            )

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def table_side(self) -> int:
        """Rows, and columns, of the learned position table."""
        return self.image_size // self.patch_size

    @classmethod
    def resolved(cls, preset: str, config: Mapping[str, object]) -> AimV2Config:
        """A preset with the fields of a published `vision_config` written over it."""
        if preset not in PRESETS:
            raise ConfigError(f"no preset {preset!r}", who="aimv2.preset", fix=f"choose one of {', '.join(PRESETS)}")
        known = fields_dict(cls)
        for key in config:
            if key not in known and key not in BOOKKEEPING:
                close = difflib.get_close_matches(str(key), known, n=1)
                fix = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"
                raise ConfigError(f"unknown option {key!r}", who="aimv2.config", fix=fix)
        values = PRESETS[preset] | {key: value for key, value in config.items() if key in known}
        return cls(**values)  # type: ignore[arg-type]  # the validators check what the mapping cannot promise
