"""Llama, Qwen2 and Qwen3 as language models of andes_sdk: transformers' classes, with attention handed to the runtime.

Everything but attention is transformers' own code. Left out: sliding windows, experts, partial rotary embeddings
(refused where a file is read).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from andes_sdk.errors import ConfigError
from andes_sdk.types import Attend, Tap, TextSpec

from .weights import fill

ATTENTION = "andes_gguf"


def attention(
    module: nn.Module,
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


class Rotary(LlamaRotaryEmbedding):
    """The rotary embedding of all three families, in float32 whatever the module is moved to or built on.

    `config.rope_factors`, if there are any, divide the frequencies one by one.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("cpu"):
            super().__init__(config)
            factors = getattr(config, "rope_factors", None)
            if factors is not None:
                self.inv_freq.div_(torch.tensor(factors, dtype=torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> Rotary:
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


class Decoder:
    """What makes a causal model of transformers an `andes_sdk.types.LanguageModel`; stands before it in the bases."""

    config: Any
    model: Any
    lm_head: nn.Linear

    def __init__(self, config: PreTrainedConfig) -> None:
        config._attn_implementation = ATTENTION
        super().__init__(config)  # type: ignore[call-arg]
        self.model.rotary_emb = Rotary(config)

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

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""
        return cast(Tensor, self.model.embed_tokens(ids))

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm. `tap` sees what enters each layer."""
        with tapped([*self.model.layers, self.model.norm], tap):
            output = self.model(
                inputs_embeds=embeds[None],  # (1, T, D)
                position_ids=positions[None],  # (1, T)
                attention_mask=embeds.new_zeros(1, 1, 1, 1),  # four dimensions are taken as they are: no mask is built
                use_cache=False,
                attend=attend,
            )
        return cast(Tensor, output.last_hidden_state[0])  # (T, D)

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        return {
            f"model.layers.{n}.{place}": (n, role)
            for n in range(self.config.num_hidden_layers)
            for place, role in ROLES.items()
        }

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        return cast(Tensor, self.lm_head(hidden))


class Llama(Decoder, LlamaForCausalLM):
    """`transformers.LlamaForCausalLM`."""


class Qwen2(Decoder, Qwen2ForCausalLM):
    """`transformers.Qwen2ForCausalLM`: biases at q, k and v."""


class Qwen3(Decoder, Qwen3ForCausalLM):
    """`transformers.Qwen3ForCausalLM`: a norm on each head of q and k."""


CLASSES: dict[str, tuple[type[Any], type[Any]]] = {
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
        # `gradient_checkpointing_enable` is the older name; newer transformers warn about it
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # only the re-entrant kind needs embeddings that ask for gradients
        model.disable_input_require_grads()
    return cast(Decoder, model)


def _built(fields: Mapping[str, Any]) -> Any:
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
