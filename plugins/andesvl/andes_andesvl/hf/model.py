"""Configurations and model: the plugins' modules as transformers classes."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from andes_andesvl.layout import plugin_items, text_fields
from andes_sdk.assembling.assembly import assemble
from andes_sdk.errors import InputError
from andes_sdk.files import FolderFiles

IMAGE_TOKEN = 151654
"""`<|vision_pad|>` of the published vocabulary."""

CACHE = "cache" if "cache" in signature(Qwen3ForCausalLM.forward).parameters else "past_key_values"
"""What this release of transformers calls the keys and values of earlier tokens; 5.24 renamed them."""


class _Config(PretrainedConfig):
    """A published `config.json`. `vision_config` stays plain data; the encoder's plugin checks it."""

    sub_configs = {"text_config": Qwen3Config}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | None = None,
        text_config: dict[str, Any] | Qwen3Config | None = None,
        image_token_id: int = IMAGE_TOKEN,
        tie_word_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        text = kwargs.pop("llm_config", None) if text_config is None else text_config
        if not isinstance(text, Qwen3Config):
            text = Qwen3Config(**text_fields(text or {}, tied=tie_word_embeddings))
        self.vision_config = dict(vision_config or {})
        self.text_config = text
        self.image_token_id = image_token_id
        super().__init__(**kwargs, tie_word_embeddings=text.tie_word_embeddings)  # type: ignore[call-arg]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As transformers does; an absent `image_token_id` is that of the token's name in the folder's tokenizer."""
        fields, left = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _with_token(fields, pretrained_model_name_or_path), left

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers does, and as above, since Auto classes come this way."""
        return super().from_dict(_with_token(config_dict, kwargs.get("name_or_path", "")), **kwargs)


def _with_token(fields: dict[str, Any], source: object) -> dict[str, Any]:
    folder = Path(str(source))
    if not fields or "image_token_id" in fields or not source or not folder.is_dir():
        return fields
    from andes_qwen3.tokenizer import QwenTokenizer

    return {**fields, "image_token_id": QwenTokenizer(FolderFiles(folder)).placeholder("image")}


# transformers gives a configuration class without an `__init__` of its own one that calls no parent


class AndesVLAimv2Qwen3Config(_Config):
    """AndesVL 1B, 2B and 4B."""

    model_type = "andesvl-aimv2-qwen3"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class AndesVLSiglip2Qwen3Config(_Config):
    """AndesVL 0.6B."""

    model_type = "andesvl-siglip2-qwen3"

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class AndesVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The plugins' modules as a transformers model; state-dict names are the published ones."""

    config_class = _Config
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]  # noqa: RUF012
    _supports_sdpa = True
    _no_split_modules = ["Qwen3DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = [CACHE]  # noqa: RUF012

    def __init__(self, config: _Config) -> None:
        super().__init__(config)
        text = config.text_config.to_diff_dict() | {"tie_word_embeddings": config.text_config.tie_word_embeddings}
        data = {"model_type": config.model_type, "vision_config": config.vision_config, "text_config": text}
        assembled = assemble(plugin_items(data, who=config.name_or_path or "config"))
        self.vision_encoder = assembled.slot("vision_encoder")
        self.language_model = assembled.slot("language_model", packed=False)
        specs = {"vision": self.vision_encoder.spec, "text": self.language_model.spec}
        self.mlp = assembled.slot("projector", **specs)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The plugins' modules initialise themselves when they are built."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """The language model's."""
        table: torch.nn.Module = self.language_model.get_input_embeddings()
        return table

    def get_output_embeddings(self) -> torch.nn.Module:
        """The language model's head."""
        head: torch.nn.Module = self.language_model.get_output_embeddings()
        return head

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_hw: torch.Tensor) -> torch.Tensor:
        """(N, 3*p*p) patches of packed images and their (images, 2) grids -> (N / 4, D)."""
        grids = [(int(h), int(w)) for h, w in image_grid_hw.tolist()]
        rows: torch.Tensor = self.mlp(self.vision_encoder(pixel_values.to(self.dtype), grids))
        return rows

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_hw: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, T) ids, packed patches of all images in order -> logits (B, T, V), loss if there are labels.

        `cache` and `past_key_values` are two names of one thing, and both work with every release of transformers.

        Raises:
            InputError: image tokens and image rows do not agree; two caches are given.
        """
        if cache is not None and past_key_values is not None:
            raise InputError("both cache and past_key_values", fix="pass one of them")
        if inputs_embeds is None:
            if input_ids is None:
                raise InputError("neither input_ids nor inputs_embeds", fix="pass one of them")
            inputs_embeds = self.get_input_embeddings()(input_ids)
            if pixel_values is not None and image_grid_hw is not None:
                inputs_embeds = self._with_images(input_ids, inputs_embeds, pixel_values, image_grid_hw)
        output: CausalLMOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            **{CACHE: past_key_values if cache is None else cache},
            **kwargs,
        )
        return output

    def _with_images(
        self, ids: torch.Tensor, embeds: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor
    ) -> torch.Tensor:
        rows = self.get_image_features(pixels, grids)
        where = ids == self.config.image_token_id
        if int(where.sum()) != len(rows):
            raise InputError(
                f"{int(where.sum())} image tokens in the text, {len(rows)} image rows from the encoder",
                fix="pass every image once; config.image_token_id must be the tokenizer's",
            )
        return embeds.masked_scatter(where[..., None], rows.to(embeds.dtype))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pictures go in with the prompt only; later steps have them in the cache."""
        parent: Any = super()  # typed in some releases of transformers, untyped in others
        inputs: dict[str, Any] = parent.prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            inputs.pop("pixel_values", None)
            inputs.pop("image_grid_hw", None)
        return inputs


class AndesVLAimv2Qwen3ForConditionalGeneration(AndesVLForConditionalGeneration):
    """AndesVL 1B, 2B and 4B."""

    config_class = AndesVLAimv2Qwen3Config  # type: ignore[assignment]


class AndesVLSiglip2Qwen3ForConditionalGeneration(AndesVLForConditionalGeneration):
    """AndesVL 0.6B."""

    config_class = AndesVLSiglip2Qwen3Config  # type: ignore[assignment]


MODELS = (AndesVLAimv2Qwen3ForConditionalGeneration, AndesVLSiglip2Qwen3ForConditionalGeneration)
