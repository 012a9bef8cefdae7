"""Causal models of transformers as language models of andes_sdk: attention is handed to the runtime.

Everything but attention is transformers' own code, so weights, names and arithmetic are those of the published models.
Left out: sliding windows, experts, partial rotary embeddings; whoever makes the configuration refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from andes_sdk.types import Attend, Tap, TextSpec

from .roles import blueprint_of, linears_of

ATTENTION = "andes"


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


class ExactRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary frequencies that no `to(dtype)`, `to_empty` or build on "meta" can spoil.

    They are a function of the configuration and no part of a checkpoint: they are computed again, in float32, whenever
    the module is moved. `config.rope_factors`, if there are any, divide them one by one. `from_pretrained` of
    transformers finds such modules by "RotaryEmbedding" in the name of the class.
    """

    def __init__(self, config: Any) -> None:
        with torch.device("cpu"):
            super().__init__(config)
            factors = getattr(config, "rope_factors", None)
            if factors is not None:
                self.inv_freq.div_(torch.tensor(factors, dtype=torch.float32))

    def _apply(self, fn: Any, recurse: bool = True) -> ExactRotaryEmbedding:
        super()._apply(fn, recurse)
        fresh = type(self)(self.config)
        for name, buffer in fresh.named_buffers():
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self


@contextmanager
def tapped(modules: Sequence[nn.Module], tap: Tap | None) -> Iterator[None]:
    """Show a tap what enters each of these modules, numbered in order, while this lasts."""

    def shown(number: int, tap: Tap) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            rows = args[0] if args else kwargs["hidden_states"]
            tap(number, rows[0])  # (1, T, D)

        return hook

    handles = []
    if tap is not None:
        handles = [m.register_forward_pre_hook(shown(n, tap), with_kwargs=True) for n, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Decoder:
    """What makes a causal model of transformers an `andes_sdk.types.LanguageModel`; stands before it in the bases.

    `forward` and `generate` of transformers keep working. After `to_empty` call `tie_weights()`: a tied head is one
    tensor with the embedding only then.
    """

    config: Any
    model: Any
    lm_head: nn.Linear

    def __init__(self, config: PreTrainedConfig) -> None:
        config._attn_implementation = ATTENTION
        super().__init__(config)  # type: ignore[call-arg]
        self.model.rotary_emb = ExactRotaryEmbedding(config)

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

    def unmasked(self, embeds: Tensor) -> Any:
        """A mask that transformers takes as it is, so that it builds none; the runtime's attention looks at none."""
        return {"full_attention": None}

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm. `tap` sees what enters each layer."""
        with tapped([*self.model.layers, self.model.norm], tap):
            output = self.model(
                inputs_embeds=embeds[None],  # (1, T, D)
                position_ids=positions[None],  # (1, T)
                attention_mask=self.unmasked(embeds),
                use_cache=False,
                attend=attend,
            )
        return cast(Tensor, output.last_hidden_state[0])  # (T, D)

    def linears(self) -> dict[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role)."""
        return linears_of(self.config.num_hidden_layers)

    def blueprint(self) -> dict[str, Any]:
        """Structure as plain data, for backends that compile decoders (`andes_numba.weights.DecoderPlan`)."""
        return blueprint_of(self.config, self.model)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        return cast(Tensor, self.lm_head(hidden))

    def checkpoint_layers(self) -> None:
        """Recompute each layer in the backward pass (training mode only); `attend` is called twice per layer."""
        model: Any = self
        # `gradient_checkpointing_enable` is the older name; newer transformers warn about it.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        # Only the re-entrant kind needs embeddings that ask for gradients.
        model.disable_input_require_grads()
