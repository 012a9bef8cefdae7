"""`POST /v1/chat/completions`."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, cast

from attrs import define, field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from andes_sdk.errors import AndesError
from andes_sdk.runtime.sampling import TokenLogprob
from andes_serve.asked import ChatRequest, grammars_of, read, sampling_of
from andes_serve.constraints import grammar_of
from andes_serve.door import body_of
from andes_serve.failures import Failure, failure_of, noted
from andes_serve.jobs import Done, Event, Piece, facts_of
from andes_serve.metrics import Metrics
from andes_serve.server import Running, Server, unless_gone
from andes_serve.tools import Calls, checked, chosen, told

END = b"data: [DONE]\n\n"


@define(eq=False)
class Chat:
    """One request to chat completions, as its answers say who made them.

    Attributes:
        start: when it came, by `time.perf_counter`.
    """

    server: Server
    asked: ChatRequest
    id: str = field(factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(factory=lambda: int(time.time()))
    start: float = field(factory=time.perf_counter)
    calls: bool = False
    _same: bytes = b""

    async def begun(self) -> Running:
        """Check the request, hand it to the engine, and wait for its first event.

        Raises:
            Failure: parameters that do not fit. AndesError: messages or pictures that cannot be used.
        """
        server, asked = self.server, self.asked
        given = sampling_of(asked, server.defaults)
        given["adapter"] = server.adapter_of(asked.model)
        if asked.stop is not None:
            given["stop"] = asked.stop
        if asked.top_logprobs is not None and not asked.logprobs:
            raise Failure(400, "top_logprobs needs logprobs", param="top_logprobs", code="invalid_value")
        if asked.logprobs:
            given["logprobs"] = asked.top_logprobs or 0
        if asked.stream_options is not None and not asked.stream:
            raise Failure(400, "stream_options needs stream", param="stream_options", code="invalid_value")
        limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        count = asked.n or 1
        if count > server.limits.choices:
            what = f"n is {count}, this server gives {server.limits.choices} answers to one request"
            raise Failure(400, what, param="n", code="invalid_value")
        server.longest(limit, 0, "max_tokens" if limit is asked.max_tokens else "max_completion_tokens")
        server.options(given, 1)  # before pictures are read
        positions = server.scheduler.engine.positions
        if len(asked.messages) > positions:
            what = f"there are {len(asked.messages)} messages, the model takes {positions} tokens"
            raise Failure(400, what, param="messages", code="context_length_exceeded")
        functions, grammar = self._structure()
        messages, origins = told(asked.messages, functions)
        running = None
        try:
            think, size = thinking(asked), asked.image_size
            async with server.prepared(messages, self.start, think=think, size=size) as inputs:
                given["max_tokens"] = server.longest(limit, len(inputs.ids))
                constraint = await server.constraint(grammar, asked.logit_bias, inputs.prefix)
                if constraint is not None:
                    given["constraint"] = constraint
                running = server.run(inputs, server.options(given, count), self.start)
                await running.begun()
        except BaseException as error:
            if running is not None:
                running.leave()
            if isinstance(error, AndesError):
                raise _renumbered(failure_of(error), origins) from error
            if isinstance(error, Failure):
                _renumbered(error, origins)
            raise
        return running

    def _structure(self) -> tuple[Mapping[str, Any], tuple[str, str] | None]:
        """Tools, and what the answer must fit with the parameter that says so, or None."""
        asked, found = self.asked, grammars_of(self.asked)
        functions, calls = chosen(
            checked(asked.tools or ()), asked.tool_choice, parallel=asked.parallel_tool_calls is not False
        )
        self.calls = bool(functions)
        if len(found) > 1 or (found and calls):
            names = [param for _, _, param in found] + (["tools"] if calls else [])
            what = f"one grammar at a time: {' and '.join(names)}"
            raise Failure(400, what, param=names[0], code="invalid_value")
        if calls:
            return functions, (calls, "tools")
        return functions, grammar_of(*found[0]) if found else None

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """The answer in one piece."""
        choices = []
        for index in range(self.asked.n or 1):
            pieces = [e for e in events if isinstance(e, Piece) and e.index == index]
            content, calls = "".join(p.content for p in pieces), list[dict[str, Any]]()
            if self.calls:
                content, calls = Calls().feed(content, final=True)
            message: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
            if calls:
                message["tool_calls"] = calls
            if reasoning := "".join(p.reasoning for p in pieces):
                message["reasoning_content"] = reasoning
            logprobs = [one for p in pieces for one in p.logprobs]
            choices.append(
                {
                    "index": index, "message": message, "finish_reason": "tool_calls" if calls else pieces[-1].finish,
                    "logprobs": {"content": self._logprobs(logprobs)} if self.asked.logprobs else None,
                }
            )  # fmt: skip
        (done,) = [e for e in events if isinstance(e, Done)]
        return {**self._head("chat.completion"), "choices": choices, "usage": facts_of(done.usage)}

    async def chunks(self, events: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        usage = self.asked.stream_options is not None and self.asked.stream_options.include_usage
        begun: dict[int, Calls] = {}
        async for some in events:
            chunks = (self._chunk(e, begun) for e in some if isinstance(e, Piece))
            yield b"".join(chunk for chunk in chunks if chunk)
            if usage and isinstance(some[-1], Done):
                yield _event({**self._head("chat.completion.chunk"), "choices": [], "usage": facts_of(some[-1].usage)})
        yield END

    def failed(self, failure: Failure) -> bytes:
        """The end of a stream that goes no further."""
        return _event(failure.body()) + END

    def _chunk(self, piece: Piece, begun: dict[int, Calls]) -> bytes:
        delta: dict[str, Any] = {}
        if piece.index not in begun:
            begun[piece.index] = Calls()
            delta["role"] = "assistant"
        content, calls, finish = piece.content, list[dict[str, Any]](), piece.finish
        if self.calls:
            found = begun[piece.index]
            first = found.count
            content, calls = found.feed(piece.content, final=bool(finish))
            if finish and found.count:
                finish = "tool_calls"
            if calls:
                delta["tool_calls"] = [{"index": first + n, **call} for n, call in enumerate(calls)]
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        if content:
            delta["content"] = content
        if not delta and not finish:
            return b""
        logprobs = {"content": self._logprobs(piece.logprobs)} if piece.logprobs else None
        choice = {"index": piece.index, "delta": delta, "finish_reason": finish or None, "logprobs": logprobs}
        # what is the same in all chunks is written once
        self._same = self._same or _event(self._head("chat.completion.chunk"))[:-3] + b',"choices":['
        return self._same + encoded(choice) + b"]}\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.asked.model,
            "system_fingerprint": self.server.fingerprint,
        }  # fmt: skip

    def _logprobs(self, found: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        decode = self.server.pipeline.tokenizer.decode

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = decode([token])
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        return [{**one(f.token, f.logprob), "top_logprobs": [one(*pair) for pair in f.top]} for f in found]


def _renumbered(failure: Failure, origins: Sequence[int]) -> Failure:
    """The same failure with the numbers of messages as they came."""

    def number(match: re.Match[str]) -> str:
        return f"messages[{origins[int(match[1])] if int(match[1]) < len(origins) else match[1]}]"

    place = re.compile(r"\bmessages\[(\d{1,9})\]")
    if place.match(failure.param or ""):
        failure.message, failure.param = place.sub(number, failure.message), place.sub(number, failure.param or "")
    return failure


def thinking(asked: ChatRequest) -> bool | None:
    """Whether a request asks for Thinking, in our words, in vLLM's or in OpenAI's; None leaves it to the model.

    Raises:
        Failure: a key of chat_template_kwargs that nothing reads.
    """
    given: dict[str, bool] = dict(asked.chat_template_kwargs or {})
    found = given.pop("enable_thinking", None)
    if given:
        place = f"chat_template_kwargs.{next(iter(given))}"
        raise Failure(400, f"unknown or unsupported parameter: {place!r}", param=place, code="unknown_parameter")
    if asked.think is not None:
        return bool(asked.think)
    return asked.reasoning_effort != "none" if found is None and asked.reasoning_effort else found


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encoded(data: Any) -> bytes:
    """As JSON, without white space."""
    return _ENCODER.encode(data).encode()


def _event(data: Any) -> bytes:
    return b"data: " + encoded(data) + b"\n\n"


async def chat_completions(server: Server, request: Request) -> Response:
    """Answer a request."""
    chat = Chat(server, read(ChatRequest, await body_of(request, server.limits.body)))
    return await answered(request, chat, chat)


async def answered(request: Request, chat: Chat, writer: Any) -> Response:
    """The answer, whole or as a stream that begins with the first event: what is refused has a status of its own.

    Args:
        writer: of the shape of the endpoint; has `asked`, `whole`, `chunks` and `failed`.
    """
    running = await unless_gone(request, chat.begun())
    if writer.asked.stream:
        return Streamed(running, writer, chat.server.metrics)
    try:
        made = JSONResponse(writer.whole(await unless_gone(request, running.gathered())))
    finally:
        running.leave()
    chat.server.metrics.ended("answered")
    return made


class Streamed(StreamingResponse):
    """A stream that ends, and cancels its request, as soon as nobody reads it: not when its rest is collected."""

    def __init__(self, running: Running, writer: Any, metrics: Metrics) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._written(), media_type="text/event-stream", headers=headers)
        self._running, self._writer, self._metrics, self._over = running, writer, metrics, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await cast("AsyncGenerator[bytes]", self.body_iterator).aclose()
            self._end("cancelled")  # one that never began has nothing to close

    async def _written(self) -> AsyncIterator[bytes]:
        outcome = "cancelled"  # where the client leaves, nothing below is reached
        try:
            async for chunk in self._writer.chunks(self._running.events()):
                if chunk:
                    yield chunk
            outcome = "answered"
        except Exception as error:  # the status is sent: the stream says it
            failure = noted(error)
            outcome = failure.outcome
            yield self._writer.failed(failure)
        finally:
            self._end(outcome)

    def _end(self, outcome: str) -> None:
        """Leave the request and count it, once."""
        if not self._over:
            self._over = True
            self._running.leave()
            self._metrics.ended(outcome)
