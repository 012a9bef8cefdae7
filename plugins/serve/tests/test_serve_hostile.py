"""Requests that nobody should send: each gets an error that names the fault, and the server goes on."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from andes_serve import door, responses
from andes_serve.jobs import Piece
from andes_serve.tools import Calls

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
LOOP = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe{}", b"[" * 200_000, b'{"a":' * 100_000, b'{"seed":' + b"9" * 5000 + b"}",
        b'{"model":"\\ud800"}', b"[]", b"null", b'{"model":"tiny","messages":[],"seed":1.5}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_bodies_that_are_no_request(served, path, body):
    got = served.http.post(f"/v1/{path}", content=body)
    assert got.status_code == 400
    assert got.json()["error"]["message"]
    assert not got.json()["error"]["message"].startswith(":")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"stop": [1]}, "stop"),
        ({"stop": "a" * 200_000}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"tools": [TOOL], "tool_choice": {"function": "x"}}, "tool_choice"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"temperature": -1.0}, "temperature"),
        ({"response_format": LOOP}, "response_format"),
        ({"grammar": "root ::= root"}, "grammar"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function"),
    ],
)
def test_parameters_that_cannot_be(served, given, param):
    error = served.ask(status=400, **given)["error"]
    assert error["param"] == param
    assert "<state>" not in error["message"]
    assert error["message"].count(param) <= 1 or "grammar" in param


def test_a_grammar_that_grows_without_end_is_refused(served):
    error = served.ask(status=400, guided_regex="(a{1000}){1000}")["error"]
    assert "too many" in error["message"] or "too big" in error["message"] or "complex" in error["message"].lower()
    assert "<state>" not in error["message"]
    served.ask()


def test_a_response_to_nothing_is_refused_by_name(served):
    got = served.http.post("/v1/responses", json={"model": "tiny", "input": []})
    assert (got.status_code, got.json()["error"]["param"]) == (400, "messages")


def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(door, "PATIENCE", 0.2)
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        slow.sendall(head)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    served.ask()


def test_readers_that_stop_reading_or_leave_hold_nothing_for_ever(served):
    host, _, port = served.url.removeprefix("http://").partition(":")
    body = b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":200,"stream":true}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    for _ in range(4):
        reader = socket.create_connection((host, int(port)), timeout=30)
        reader.sendall(head + body)
        reader.recv(10)
        reader.close()
    served.ask()
    assert served.idle()


def test_items_of_a_streamed_response_hold_their_own_text_alone():
    told = []
    owner = SimpleNamespace(chat=SimpleNamespace(calls=True), _event=lambda kind, **more: told.append((kind, more)))
    writer = responses._Writer(owner, Calls())
    call = '<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    for text, finish in (("First. ", ""), (call, ""), ("Then more.", "stop")):
        writer.piece(Piece(index=0, content=text, finish=finish))
    writer.close()
    done = [more["text"] for kind, more in told if kind == "response.output_text.done"]
    said = [more["delta"] for kind, more in told if kind == "response.output_text.delta"]
    assert "".join(done) == "".join(said)
    assert [text.strip() for text in done] == ["First.", "Then more."]
    assert [item["type"] for item in writer.output] == ["message", "function_call", "message"]


def test_requests_that_join_while_others_are_looked_through_harm_none(served):
    def ask(number):
        return served.ask(messages=[{"role": "user", "content": f"{number}"}], max_tokens=2)

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(96)))
    assert all(a["choices"][0]["finish_reason"] in ("stop", "length") for a in answers)
