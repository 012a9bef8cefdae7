"""`POST /v1/responses`: the Responses API, with text, pictures, function tools and reasoning.

A response is kept in memory, unless `store` is false, so that `previous_response_id` can go on from it; the oldest are
forgotten first. What runs elsewhere (files, web search, background work) is refused by name.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

from attrs import define, field
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from andes_sdk.errors import AndesError
from andes_serve.asked import ChatRequest, Effort, Sampling, Strict, failure, read
from andes_serve.chat import Chat, answered
from andes_serve.door import body_of
from andes_serve.failures import Failure, failure_of
from andes_serve.items import Writer, called, message, new
from andes_serve.jobs import Done, Event, Piece, Usage, responses_facts_of
from andes_serve.server import Server
from andes_serve.tools import Calls

KEPT = 1000
"""Responses that can be gone on from; their pictures count as text, so that bytes are bounded too."""

KEPT_BYTES = 256 << 20


class Format(Strict):
    """Of `text.format`."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Text(Strict):
    """`text`."""

    format: Format | None = None


class Reasoning(Strict):
    """`reasoning`."""

    effort: Effort | None = None


class ResponseRequest(Sampling):
    """`POST /v1/responses`."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    store: bool | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


@define(eq=False)
class Kept:
    """Conversations that responses can go on from, by the id of the response."""

    found: OrderedDict[str, tuple[list[dict[str, Any]], int]] = field(factory=OrderedDict)
    size: int = 0

    def put(self, name: str, messages: list[dict[str, Any]]) -> None:
        """Keep one; the oldest go."""
        size = len(json.dumps(messages))
        self.found[name] = (messages, size)
        self.size += size
        while len(self.found) > KEPT or (self.size > KEPT_BYTES and len(self.found) > 1):
            self.size -= self.found.popitem(last=False)[1][1]

    def get(self, name: str) -> list[dict[str, Any]]:
        """Its messages.

        Raises:
            Failure: it is not known, or no longer.
        """
        if name not in self.found:
            what = f"there is no response {name!r}: it was not stored, or is forgotten"
            raise Failure(404, what, param="previous_response_id", code="previous_response_not_found")
        self.found.move_to_end(name)
        return self.found[name][0]


def messages_of(
    asked: ResponseRequest, before: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Input items as messages of chat completions, behind those of a previous response; and where each came from.

    Returns:
        The messages without the instructions; and the places of the request by those of chat completions, where the
        instructions count: `{"messages[0]": "instructions", "messages[1].tool_calls[0]": "input[0]"}`.

    Raises:
        Failure: an item of a kind that is not known.
    """
    made, instructed = [*before], asked.instructions is not None
    origins = {"messages[0]": "instructions"} if instructed else dict[str, str]()
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    calls: list[dict[str, Any]] | None = None  # of the last message, to which more may come
    for number, item in enumerate(items):
        place, kind = f"input[{number}]", item.get("type", "message")
        if kind == "message":
            made.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if calls is None and made and made[-1].get("tool_calls"):  # of the response before, which stays as it is
                made[-1] = {**made[-1], "tool_calls": [*made[-1]["tool_calls"]]}
                calls = made[-1]["tool_calls"]
            if calls is None:
                calls = list[dict[str, Any]]()
                made.append({"role": "assistant", "content": "", "tool_calls": calls})
            origins[f"messages[{len(made) - 1 + instructed}].tool_calls[{len(calls)}]"] = place
            calls.append(call)
        elif kind == "function_call_output":
            output = item.get("output")
            if output is None:
                raise Failure(400, "output is needed", param=f"{place}.output", code="invalid_value")
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            made.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":  # reasoning of earlier turns is not read again
            raise Failure(400, f"unsupported item {kind!r}", param=f"{place}.type", code="unsupported_parameter")
        calls = calls if kind == "function_call" else None
        own = place if isinstance(asked.input, list) else "input"
        origins.setdefault(f"messages[{len(made) - 1 + instructed}]", own)
    return made, origins


def _content(content: Any, place: str) -> Any:
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "input_image":
            shown = {"url": part.get("image_url"), "detail": part.get("detail")}
            parts.append({"type": "image_url", "image_url": shown})
        else:
            where = f"{place}.content[{index}].type"
            raise Failure(400, f"unsupported part {kind!r}", param=where, code="unsupported_parameter")
    return parts


def chat_of(asked: ResponseRequest, messages: list[dict[str, Any]]) -> ChatRequest:
    """The same request to chat completions.

    Raises:
        Failure: a tool that does not run here.
    """
    if asked.instructions is not None:
        messages = [{"role": "system", "content": asked.instructions}, *messages]
    form = asked.text.format if asked.text else None
    response_format = None
    if form is not None:
        schema = {"name": form.name or "", "schema": form.schema_} if form.schema_ is not None else None
        response_format = {"type": form.type, "json_schema": schema}
    tools = None
    if asked.tools:
        for number, tool in enumerate(asked.tools):
            if tool.get("type") != "function":
                place = f"tools[{number}].type"
                raise Failure(400, f"unsupported tool {tool.get('type')!r}", param=place, code="unsupported_parameter")
        tools = [{"type": "function", "function": {k: v for k, v in t.items() if k != "type"}} for t in asked.tools]
    shared = {name: getattr(asked, name) for name in Sampling.model_fields}
    given = {
        **shared, "model": asked.model, "messages": messages, "max_tokens": asked.max_output_tokens,
        "response_format": response_format, "tools": tools, "tool_choice": asked.tool_choice,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "reasoning_effort": asked.reasoning and asked.reasoning.effort,
    }  # fmt: skip
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        raise failure(error) from None


@define(eq=False)
class Responding:
    """One response in the making."""

    server: Server
    asked: ResponseRequest
    chat: Chat
    messages: list[dict[str, Any]]
    kept: Kept
    id: str = field(factory=lambda: f"resp_{secrets.token_hex(16)}")
    created: int = field(factory=lambda: int(time.time()))
    _sequence: int = 0
    _output: list[dict[str, Any]] = field(factory=list)

    def response(self, status: str, output: Sequence[Any] = (), usage: Usage | None = None, **more: Any) -> Any:
        """The object of a response."""
        asked = self.asked
        form = asked.text.format if asked.text else None
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "model": asked.model,
            "output": list(output), "usage": usage and responses_facts_of(usage), "metadata": asked.metadata or {},
            "previous_response_id": asked.previous_response_id, "incomplete_details": None, "error": None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "temperature": asked.temperature, "top_p": asked.top_p, "tools": asked.tools or [],
            "tool_choice": asked.tool_choice or "auto", "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
            "store": asked.store is not False, "truncation": "disabled", **more,
        }  # fmt: skip

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The response in one piece; stored, unless it must not be."""
        pieces = [e for e in events if isinstance(e, Piece)]
        (done,) = [e for e in events if isinstance(e, Done)]
        content, calls = "".join(p.content for p in pieces), list[dict[str, Any]]()
        if self.chat.calls:
            content, calls = Calls().feed(content, final=True)
        output = self.items("".join(p.reasoning for p in pieces), content, calls)
        return self.ended(output, content, calls, pieces[-1].finish, done.usage)

    def items(self, reasoning: str, content: str, calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Output items."""
        found: list[dict[str, Any]] = []
        if reasoning:
            text = [{"type": "reasoning_text", "text": reasoning}]
            found.append({"id": new("rs"), "type": "reasoning", "summary": [], "content": text, "status": "completed"})
        if content or not (calls or reasoning):
            found.append(message(new("msg"), content, "completed"))
        found += [called(call) for call in calls]
        return found

    def ended(
        self, output: list[Any], content: str, calls: Sequence[dict[str, Any]], finish: str, usage: Usage
    ) -> dict[str, Any]:
        """The response at its end."""
        if self.asked.store is not False:
            own: dict[str, Any] = {"role": "assistant", "content": content}
            if calls:
                own["tool_calls"] = list(calls)
            self.kept.put(self.id, [*self.messages, own])
        if finish == "length":
            details = {"reason": "max_output_tokens"}
            made: dict[str, Any] = self.response("incomplete", output, usage, incomplete_details=details)
        else:
            made = self.response("completed", output, usage)
        return made

    def _event(self, kind: str, **more: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._sequence, **more}
        self._sequence += 1
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        return f"event: {kind}\ndata: {text}\n\n".encode()

    async def chunks(self, events: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
        """The response as server-sent events."""
        yield self._event("response.created", response=self.response("in_progress"))
        yield self._event("response.in_progress", response=self.response("in_progress"))
        writer = Writer(self._event, Calls() if self.chat.calls else None, self._output)
        async for some in events:
            for event in some:
                if isinstance(event, Piece):
                    for chunk in writer.piece(event):
                        yield chunk
                elif isinstance(event, Done):
                    for chunk in writer.close():
                        yield chunk
                    final = self.ended(writer.output, writer.content, writer.made, writer.finish, event.usage)
                    yield self._event(f"response.{final['status']}", response=final)

    def failed(self, failure: Failure) -> bytes:
        """The end of a stream that goes no further."""
        told = {"code": failure.code or "server_error", "message": failure.message}
        return self._event("response.failed", response=self.response("failed", self._output, error=told))


NAMES = {"max_tokens": "max_output_tokens", "response_format": "text.format", "messages": "input"}
"""Parameters of chat completions, as this endpoint calls them."""

FIELDS = (
    (re.compile(r"\bresponse_format\.json_schema(\.schema)?\b"), "text.format.schema"),
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\b(max_tokens|response_format)\b|^(messages)(?=:|$)"), lambda m: NAMES[m[0]]),  # no plain words
)
PLACE = re.compile(r"\b(messages\[\d+\])(\.tool_calls\[\d+\])?((?:\.\w+|\[\d+\])*)")


def _renamed(failure: Failure, origins: Mapping[str, str]) -> Failure:
    """The same failure with the names of this endpoint's parameters; `origins`: see `messages_of`."""

    def place(match: re.Match[str]) -> str:
        message, call, rest = match[1], match[2] or "", match[3]
        found = origins.get(message + call) or origins.get(message, "previous_response_id")
        if not found.startswith("input["):
            return found
        rest = rest.removeprefix(".function") if call else rest
        return found + rest.replace(".image_url.url", ".image_url").replace(".image_url.detail", ".detail")

    def named(text: str) -> str:
        for pattern, name in FIELDS:
            text = pattern.sub(name, text)
        return PLACE.sub(place, text)

    if failure.param:
        failure.message, failure.param = named(failure.message), named(failure.param)
    return failure


@define(eq=False)
class Responses:
    """Answer a request in the shape of responses; the endpoint, with what it keeps."""

    kept: Kept = field(factory=Kept)

    async def __call__(self, server: Server, request: Request) -> Response:
        """Answer a request in the shape of responses."""
        asked: ResponseRequest = read(ResponseRequest, await body_of(request, server.limits.body))
        before = self.kept.get(asked.previous_response_id) if asked.previous_response_id else []
        messages, origins = messages_of(asked, before)
        try:
            chat = Chat(server, chat_of(asked, messages))
            return await answered(request, chat, Responding(server, asked, chat, messages, self.kept))
        except AndesError as error:
            raise _renamed(failure_of(error), origins) from error
        except Failure as failure:
            _renamed(failure, origins)
            raise
