"""How an answer is decoded."""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute, field, frozen
from attrs.validators import and_, ge, gt, in_, instance_of, le, lt, optional

from andes_sdk.errors import ConfigError

COOLEST, HOTTEST = 1e-3, 1e3
"""Temperatures above 0 that mean something: colder ones overflow what they divide, and choose as 0 does."""


def _number(self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{attribute.name}: expected a finite number, got {value!r}")


def _whole(self: Any, attribute: Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{attribute.name}: expected a whole number, got {value!r}")


def _heat(self: Any, attribute: Attribute[Any], value: float) -> None:
    if value != 0 and not COOLEST <= value <= HOTTEST:
        raise ValueError(f"temperature: expected 0, or {COOLEST:g} to {HOTTEST:g}, got {value!r}")


def _strings(value: object) -> object:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _stops(self: Any, attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, tuple) or not all(isinstance(s, str) and s for s in value):
        raise TypeError(f"stop: expected texts that are not empty, got {value!r}")


def _rule(self: Any, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not callable(getattr(value, "allowed", None)):
        raise TypeError(f"constraint: expected an object with a method `allowed`, got {value!r}")


def _ours(cls: type, fields: list[Attribute[Any]]) -> list[Attribute[Any]]:
    """Every complaint of a validator as one of our errors, whether the options come from Python, TOML or JSON."""

    def wrapped(check: Any) -> Any:
        def run(self: Any, attribute: Attribute[Any], value: object) -> None:
            try:
                check(self, attribute, value)
            except (TypeError, ValueError) as error:
                raise ConfigError(str(error.args[0]), who=f"generation.{attribute.name}") from None

        return run

    return [f.evolve(validator=wrapped(f.validator)) if f.validator is not None else f for f in fields]


@frozen(kw_only=True, field_transformer=_ours)
class GenerationOptions:
    """How an answer is decoded.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 decodes greedily, else 0.001 to 1000; published Thinking models use 0.6, top_k 20, top_p 0.95.
        top_k: sample among so many of the likeliest tokens; 0 for all.
        top_p, min_p: as in transformers.
        repetition_penalty: over prompt and answer (CTRL), 0.01 to 100.
        presence_penalty: over the answer (OpenAI), -100 to 100.
        penalise_ends: whether penalties hold for end and padding tokens too. Earlier turns are full of these.
        stop: one string or several that end the answer. They are not part of it.
        seed: keys the noise together with the position.
        think: prefill `<think>`; None leaves it to the language model's plugin.
        adapter: name of a LoRA adapter that `pipeline.add_adapter` attached; None: none.
        logprobs: how many of the most likely tokens to report beside each one chosen; None: no log-probabilities.
        image_size: pixels. No picture of this request is larger in area than the square of this side, but for rounding
            up to whole blocks. None: as at load.
        constraint: says which tokens may come next; an `andes_sdk.types.Constraint`.
    """

    max_tokens: int = field(default=512, validator=and_(_whole, ge(1)))
    temperature: float = field(default=0.0, validator=and_(_number, _heat))
    top_k: int = field(default=0, validator=and_(_whole, ge(0)))
    top_p: float = field(default=1.0, validator=and_(_number, gt(0.0), le(1.0)))
    min_p: float = field(default=0.0, validator=and_(_number, ge(0.0), le(1.0)))
    repetition_penalty: float = field(default=1.0, validator=and_(_number, ge(0.01), le(100.0)))
    presence_penalty: float = field(default=0.0, validator=and_(_number, ge(-100.0), le(100.0)))
    penalise_ends: bool = field(default=False, validator=instance_of(bool))
    stop: tuple[str, ...] = field(default=(), converter=_strings, validator=_stops)
    seed: int = field(default=0, validator=and_(_whole, ge(0), lt(1 << 64)))
    think: bool | None = field(default=None, validator=in_((None, True, False)))
    adapter: str | None = field(default=None, validator=optional(instance_of(str)))
    logprobs: int | None = field(default=None, validator=optional(and_(_whole, ge(0), le(1000))))
    image_size: int | None = field(default=None, validator=optional(and_(_whole, ge(1), le(1 << 16))))
    constraint: Any = field(default=None, validator=_rule)
