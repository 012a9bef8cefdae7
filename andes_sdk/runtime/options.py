"""How an answer is decoded."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from attrs.validators import and_, ge, gt, le, optional


@frozen(kw_only=True)
class GenerationOptions:
    """How an answer is decoded.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 decodes greedily; published Thinking models use 0.6 with top_k 20 and top_p 0.95.
        top_k: 0 for all. top_p, min_p: as in transformers.
        repetition_penalty: over prompt and answer (CTRL). presence_penalty: over the answer (OpenAI).
        stop: strings that end the answer; they are not part of it.
        seed: keys the noise together with the position.
        think: prefill `<think>`; None leaves it to the language model's plugin.
        adapter: name of a LoRA adapter that `pipeline.add_adapter` attached; None: none.
        logprobs: how many of the most likely tokens to report beside each one chosen; None: no log-probabilities.
        constraint: says which tokens may come next; an `andes_sdk.types.Constraint`.
    """

    max_tokens: int = field(default=512, validator=ge(1))
    temperature: float = field(default=0.0, validator=ge(0.0))
    top_k: int = field(default=0, validator=ge(0))
    top_p: float = field(default=1.0, validator=and_(gt(0.0), le(1.0)))
    min_p: float = field(default=0.0, validator=and_(ge(0.0), le(1.0)))
    repetition_penalty: float = field(default=1.0, validator=gt(0.0))
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = field(default=0, validator=ge(0))
    think: bool | None = None
    adapter: str | None = None
    logprobs: int | None = field(default=None, validator=optional(and_(ge(0), le(1000))))
    constraint: Any = None
