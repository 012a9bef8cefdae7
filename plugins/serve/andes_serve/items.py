"""Output items of a response: made at once, or as they grow while the answer comes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field

from andes_serve.jobs import Piece
from andes_serve.tools import Calls


@define(eq=False)
class Writer:
    """Output items that grow: reasoning, then a message, then calls.

    Attributes:
        event: writes an event. calls: finds calls, where there are tools.
    """

    event: Callable[..., bytes]
    calls: Calls | None = None
    output: list[dict[str, Any]] = field(factory=list)
    content: str = ""
    made: list[dict[str, Any]] = field(factory=list)
    finish: str = ""
    _open: str = ""
    _id: str = ""
    _text: str = ""

    def piece(self, piece: Piece) -> list[bytes]:
        """Events of one piece."""
        out: list[bytes] = []
        content, calls = piece.content, list[dict[str, Any]]()
        if self.calls is not None:
            content, calls = self.calls.feed(piece.content, final=bool(piece.finish))
        self.finish = piece.finish
        if piece.reasoning:
            out += self._begin("reasoning")
            self._text += piece.reasoning
            out.append(self._delta("response.reasoning_text.delta", piece.reasoning))
        if content:
            out += self._begin("message")
            self.content += content
            self._text += content
            out.append(self._delta("response.output_text.delta", content, logprobs=[]))
        for call in calls:
            out += self._end()
            out += self._called(call)
        if piece.finish and not self.output and not self._open:
            out += self._begin("message")
        return out

    def close(self) -> list[bytes]:
        """Events that end whatever is open."""
        return self._end()

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        place = {"item_id": self._id, "output_index": len(self.output), "content_index": 0}
        return self.event(kind, **place, delta=text, **more)

    def _begin(self, kind: str) -> list[bytes]:
        if self._open == kind:
            return []
        out = self._end()
        self._open, self._id, self._text = kind, new("rs" if kind == "reasoning" else "msg"), ""
        item: dict[str, Any] = message(self._id, None, "in_progress")
        if kind == "reasoning":
            item = {"id": self._id, "type": "reasoning", "summary": [], "content": [], "status": "in_progress"}
        index = len(self.output)
        out.append(self.event("response.output_item.added", output_index=index, item=item))
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": []}
            place = {"item_id": self._id, "output_index": index, "content_index": 0}
            out.append(self.event("response.content_part.added", **place, part=part))
        return out

    def _end(self) -> list[bytes]:
        if not self._open:
            return []
        kind, index = self._open, len(self.output)
        place = {"item_id": self._id, "output_index": index, "content_index": 0}
        event, out = self.event, []
        if kind == "message":
            item = message(self._id, self._text, "completed")
            out.append(event("response.output_text.done", **place, text=self._text, logprobs=[]))
            out.append(event("response.content_part.done", **place, part=item["content"][0]))
        else:
            text = [{"type": "reasoning_text", "text": self._text}]
            item = {"id": self._id, "type": "reasoning", "summary": [], "content": text, "status": "completed"}
            out.append(event("response.reasoning_text.done", **place, text=self._text))
        self._open = ""
        self.output.append(item)
        out.append(event("response.output_item.done", output_index=index, item=item))
        return out

    def _called(self, call: Mapping[str, Any]) -> list[bytes]:
        item, index, event = called(call), len(self.output), self.event
        self.made.append(dict(call))
        self.output.append(item)
        empty = {**item, "arguments": "", "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": index}
        return [
            event("response.output_item.added", output_index=index, item=empty),
            event("response.function_call_arguments.delta", **place, delta=item["arguments"]),
            event("response.function_call_arguments.done", **place, arguments=item["arguments"], name=item["name"]),
            event("response.output_item.done", output_index=index, item=item),
        ]


def new(kind: str) -> str:
    """A name of its own."""
    return f"{kind}_{secrets.token_hex(12)}"


def message(name: str, text: str | None, status: str) -> dict[str, Any]:
    """A message of the assistant."""
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}


def called(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call, as chat completions have it, as an item."""
    own = {"call_id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
    return {"id": new("fc"), "type": "function_call", "status": "completed", **own}
