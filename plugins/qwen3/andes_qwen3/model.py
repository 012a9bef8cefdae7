"""Qwen3 as a language model of andes_sdk: transformers' class, with attention handed to the runtime.

Everything but attention is transformers' own code, so weights, names and arithmetic are those of the published model.
Left out: sliding windows and attention dropout (refused in `configuration.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from andes_sdk.errors import ConfigError
from andes_sdk.types import Attend, Tap, TextSpec

ATTENTION = "andes"


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function of every layer: the runtime's `attend` if one is given, otherwise transformers' SDPA.

    query (B, Hq, T, d), key and value (B, Hkv, T, d) -> (B, T, Hq, d).
    """
    if attend is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return attend(cast(int, module.layer_idx), query, key, value, scaling), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class ExactRotaryEmbedding(Qwen3RotaryEmbedding):
    """Frequencies that no `to(dtype)`, `to_empty` or build on "meta" can spoil.

    They are a function of the configuration and no part of a checkpoint: they are computed again, in float32, whenever
    the module is moved.
    """

    def __init__(self, config: Qwen3Config) -> None:
        with torch.device("cpu"):
            super().__init__(config)

    def _apply(self, fn: Any, recurse: bool = True) -> ExactRotaryEmbedding:
        super()._apply(fn, recurse)
        fresh = type(self)(self.config)
        for name, buffer in fresh.named_buffers():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


ROLES = {
    "self_attn.q_proj": "q", "self_attn.k_proj": "k", "self_attn.v_proj": "v", "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down",
}  # fmt: skip
"""Linear layers of a decoder layer, and what they do."""


@contextmanager
def tapped(modules: Sequence[nn.Module], tap: Tap | None) -> Iterator[None]:
    """Show a tap what enters each of these modules, numbered in order, while this lasts."""

    def shown(number: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            rows = args[0] if args else kwargs["hidden_states"]
            tap(number, rows[0])  # (1, T, D)

        return hook

    handles = []
    if tap is not None:
        handles = [m.register_forward_pre_hook(shown(n), with_kwargs=True) for n, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Qwen3LanguageModel(Qwen3ForCausalLM):
    """`transformers.Qwen3ForCausalLM` that also is an `andes_sdk.types.LanguageModel`.

    `forward` and `generate` of transformers keep working. After `to_empty` call `tie_weights()`: a tied head is one
    tensor with the embedding only then.

    Raises:
        ConfigError: the configuration asks for sliding-window layers.
    """

    def __init__(self, config: Qwen3Config) -> None:
        if any(kind != "full_attention" for kind in config.layer_types or ()):
            raise ConfigError("sliding-window layers are not supported", who="qwen3", why=f"{config.layer_types}")
        config._attn_implementation = ATTENTION
        super().__init__(config)
        self.model.rotary_emb = ExactRotaryEmbedding(config)

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
    def spec(self) -> TextSpec:
        """Sizes, read from the configuration."""
        c = self.config
        return TextSpec(
            width=c.hidden_size,
            vocab_size=c.vocab_size,
            layers=c.num_hidden_layers,
            query_heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            max_positions=c.max_position_embeddings,
        )

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return self.lm_head.weight is self.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""
        return self.model.embed_tokens(ids)

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm. `tap` sees what enters each layer."""
        with tapped([*self.model.layers, self.model.norm], tap):
            output = self.model(
                inputs_embeds=embeds[None],  # (1, T, D)
                position_ids=positions[None],  # (1, T)
                attention_mask={"full_attention": None},  # a mapping is taken as it is: no mask is built
                use_cache=False,
                attend=attend,
            )
        return output.last_hidden_state[0]  # (T, D)

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        return {
            f"model.layers.{n}.{place}": (n, role)
            for n in range(self.config.num_hidden_layers)
            for place, role in ROLES.items()
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        return self.lm_head(hidden)

    def checkpoint_layers(self) -> None:
        """Recompute each layer in the backward pass (training mode only); `attend` is called twice per layer."""
        # `gradient_checkpointing_enable` is the older name; newer transformers warn about it.
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # Only the re-entrant kind needs embeddings that ask for gradients.
        self.disable_input_require_grads()
