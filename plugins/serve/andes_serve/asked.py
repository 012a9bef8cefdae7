"""Requests in OpenAI's shape, checked: what has no effect here is refused by name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from andes_serve.failures import Failure

STOPS, LONGEST = 64, 1000
"""Stop texts of a request, and characters of each: each token of an answer is compared with all their beginnings."""


VALUES = 250_000
"""Commas and opening brackets of a body: a value takes many times more memory than the few bytes that write it."""


class Strict(BaseModel):
    """Nothing is converted, and nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """Of `stream_options`."""

    include_usage: bool = False


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""Of reasoning: any but "none" asks for Thinking."""


class Sampling(Strict):
    """What all endpoints share; None takes the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: Literal[0] | float | None = None
    seed: int | None = None
    image_size: int | None = None
    think: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class Schema(Strict):
    """Of `response_format`."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Structured(Strict):
    """vLLM's `structured_outputs`."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    stop: str | list[str] | None = None
    reasoning_effort: Effort | None = None

    @field_validator("stop")
    @classmethod
    def _bounded(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > STOPS or any(len(text) > LONGEST for text in texts):
            raise ValueError(f"at most {STOPS} texts of {LONGEST} characters")
        return stop

    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    chat_template_kwargs: dict[str, bool] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # vLLM's and llama.cpp's words for grammars
    structured_outputs: Structured | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None


def read(kind: type[Strict], body: bytes | bytearray) -> Any:
    """A body of JSON as a request.

    Raises:
        Failure: it is none, or has parameters that are not known or do not fit.
    """
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > VALUES:
        raise Failure(400, f"the body may have more than {VALUES} values", code="request_too_large")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise failure(error) from None


def failure(error: ValidationError) -> Failure:
    """The first problem, as OpenAI tells it."""
    first, count = error.errors(include_url=False, include_context=False)[0], error.error_count()
    kinds = {"str", "list", "float", "int"}  # of a union's parts: pydantic's words, nobody's parameters
    parts = [part for part in first["loc"] if part not in kinds and "[" not in str(part)]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    more = f" ({count - 1} more)" if count > 1 else ""
    if first["type"] == "extra_forbidden":
        what = f"unknown or unsupported parameter: {place!r}"
        return Failure(400, what + more, param=place, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return Failure(400, f"the body is no JSON: {first['msg']}", code="invalid_json")
    return Failure(400, f"{place or 'the body'}: {first['msg']}{more}", param=place or None, code="invalid_value")


def sampling_of(asked: Sampling, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `GenerationOptions` that a request sets, over the server's defaults.

    Raises:
        Failure: a parameter that has no effect here.
    """
    if asked.frequency_penalty:
        fix = "unsupported parameter: 'frequency_penalty' (presence_penalty and repetition_penalty are computed)"
        raise Failure(400, fix, param="frequency_penalty", code="unsupported_parameter")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "image_size")
    given = {name: value for name in names if (value := getattr(asked, name)) is not None}
    seed = asked.seed if asked.seed is not None else defaults.get("seed", secrets.randbits(63))
    return {**defaults, **given, "seed": seed & (1 << 64) - 1}


def grammars_of(asked: ChatRequest) -> list[tuple[str, Any, str]]:
    """Kind, text and parameter of each grammar that a request names.

    Raises:
        Failure: a schema that is announced and absent.
    """
    found: list[tuple[str, Any, str]] = []
    form = asked.response_format
    if form is not None and form.type == "json_object":
        found.append(("json_schema", {"type": "object"}, "response_format"))
    elif form is not None and form.type == "json_schema":
        if form.json_schema is None:
            place = "response_format.json_schema"
            raise Failure(400, f"{place} is needed", param=place, code="invalid_value")
        found.append(("json_schema", form.json_schema.schema_, "response_format"))
    own = asked.structured_outputs or Structured()
    given = [
        ("json_schema", own.json_, "structured_outputs.json"), ("regex", own.regex, "structured_outputs.regex"),
        ("choice", own.choice, "structured_outputs.choice"), ("grammar", own.grammar, "structured_outputs.grammar"),
        ("json_schema", asked.guided_json, "guided_json"), ("regex", asked.guided_regex, "guided_regex"),
        ("choice", asked.guided_choice, "guided_choice"), ("grammar", asked.guided_grammar, "guided_grammar"),
        ("json_schema", asked.json_schema, "json_schema"), ("grammar", asked.grammar, "grammar"),
    ]  # fmt: skip
    return found + [one for one in given if one[1] is not None]
