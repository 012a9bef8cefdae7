"""Fields of a published `vision_config`, checked: what the configurations of native-resolution encoders share."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Self

from attrs import Attribute, fields_dict

from andes_sdk.config import too_large
from andes_sdk.errors import ConfigError

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

SAME = {"merge_size": "hidden_stride", "spatial_merge_size": "hidden_stride", "in_channels": "num_channels"}
"""Other names of fields: a configuration that has both must give them one value."""

Validator = Callable[[Any, "Attribute[Any]", Any], None]
"""Of a field of `VisionFields`."""


class VisionFields(ABC):
    """Base of a frozen attrs class with the fields of a published `vision_config`, among them those below.

    Attributes:
        plugin: whom errors name.
        presets: name -> what differs from the published values.
        ignored: keys without effect.
    """

    __slots__ = ()
    plugin: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, object]]]
    ignored: ClassVar[frozenset[str]] = BOOKKEEPING

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    patch_size: int
    initializer_range: float
    hidden_stride: int
    preserve_original_pe: bool
    disable_rope: bool
    rope_theta: float
    fullatt_block_indexes: list[int] | None
    window_size: int | None

    @classmethod
    def resolved(cls, preset: str, config: Mapping[str, object], ignore: Collection[str] = ()) -> Self:
        """A preset with the fields of a published `vision_config` written over it.

        Args:
            ignore: keys that the user says have no effect.
        """
        who, presets = cls.plugin, cls.presets
        if preset not in presets:
            raise ConfigError(f"no preset {preset!r}", who=f"{who}.preset", fix=f"choose one of {', '.join(presets)}")
        known = fields_dict(cls)  # type: ignore[arg-type]  # subclasses are attrs classes
        for key in config:
            if key not in known and key not in SAME and key not in cls.ignored and key not in ignore:
                close = difflib.get_close_matches(str(key), known, n=1)
                fix = f"did you mean {close[0]!r}?" if close else f"the fields that matter are {', '.join(known)}"
                fix += f'; if it changes no number, pass plugins=[{{"{who}": {{"ignore": [{key!r}]}}}}]'
                raise ConfigError(f"unknown option {key!r}", who=f"{who}.config", fix=fix)
        fields = {key: value for key, value in config.items() if key in known}
        made = cls(**{**presets[preset], **fields})
        for key, field in SAME.items():
            if key in config and config[key] != getattr(made, field):
                raise made.refusal(key, config[key], f"{getattr(made, field)}, which is what {field} gives")
        return made

    @classmethod
    def without_effect(cls, config: Mapping[str, object], ignore: Collection[str] = ()) -> dict[str, str]:
        """For `andes_explain`: keys of a `vision_config` that change nothing here."""
        idle = [key for key in config if key in cls.ignored or key in ignore]
        return {"without effect": ", ".join(sorted(idle))} if idle else {}

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    @abstractmethod
    def table_side(self) -> int:
        """Rows, and columns, of the learned position table."""

    def refusal(self, name: str, value: object, wanted: str) -> ConfigError:
        """The error for a field that does not hold what is wanted."""
        return ConfigError(f"expected {wanted}, got {value!r}", who=f"{self.plugin}.config.{name}")

    def check_heads(self) -> None:
        """Refuse heads that do not divide the width, or are too narrow for rotary positions."""
        if self.hidden_size % self.num_attention_heads:
            wanted = f"a divisor of hidden_size {self.hidden_size}"
            raise self.refusal("num_attention_heads", self.num_attention_heads, wanted)
        if not self.disable_rope and self.head_dim % 4:
            wanted = "heads of a multiple of 4 features (rotary positions: rows and columns, in pairs)"
            raise self.refusal("num_attention_heads", self.num_attention_heads, wanted)

    def check_windows(self) -> None:
        """Refuse blocks that do not see the whole image.

        A window size alone changes nothing: published configurations carry one and leave every block full.
        """
        full = self.fullatt_block_indexes
        if full is not None and set(full) != set(range(self.num_hidden_layers)):
            raise ConfigError(
                "window attention is not supported",
                who=f"{self.plugin}.config.fullatt_block_indexes",
                why=f"only blocks {full} of {self.num_hidden_layers} would see the whole image",
                fix="leave fullatt_block_indexes out, as the published models do",
            )

    def explained(self, name: str, *, sampling: str, activation: str, gradient_checkpointing: bool) -> dict[str, str]:
        """What the configuration comes to, for `andes_explain`.

        Args:
            name: of the encoder.
            sampling: how the position table is resized.
        """
        side, table = self.table_side, "none (preserve_original_pe is false)"
        if self.preserve_original_pe:
            table = f"learned {side}x{side} table, {sampling}"
        windows = "full within each image in every block"
        if self.window_size is not None:
            windows += f"; window_size {self.window_size} has no effect, no block is windowed"
        return {
            "encoder": f"{name}, {self.num_hidden_layers} layers of {self.hidden_size}, patch {self.patch_size}",
            "attention": windows,
            "absolute positions": table,
            "rotary positions": "none (disable_rope)" if self.disable_rope else f"2-D, theta {self.rope_theta:g}",
            "activation": activation,
            "gradient checkpointing": "on, in training" if gradient_checkpointing else "off",
        }


def whole(instance: VisionFields, attribute: Attribute[Any], value: Any) -> None:
    """Refuse all but whole numbers of at least 1."""
    if type(value) is not int or value < 1:
        raise instance.refusal(attribute.name, value, "a whole number of at least 1")
    if too_large(attribute.name, value):
        raise instance.refusal(attribute.name, value, "a size that a model can have")


def number(instance: VisionFields, attribute: Attribute[Any], value: Any) -> None:
    """Refuse all but numbers above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise instance.refusal(attribute.name, value, "a number above 0")


def flag(instance: VisionFields, attribute: Attribute[Any], value: Any) -> None:
    """Refuse all but booleans."""
    if not isinstance(value, bool):
        raise instance.refusal(attribute.name, value, "true or false")


def blocks(instance: VisionFields, attribute: Attribute[Any], value: Any) -> None:
    """Refuse all but None and lists of whole numbers."""
    if value is not None and not (isinstance(value, list | tuple) and all(type(block) is int for block in value)):
        raise instance.refusal(attribute.name, value, "null or a list of block numbers")


def only(*choices: object) -> Validator:
    """Refuse all but these values."""

    def check(instance: VisionFields, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or value not in choices:
            raise instance.refusal(attribute.name, value, " or ".join(map(repr, choices)))

    return check
