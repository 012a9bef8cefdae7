"""Bodies count as memory while their requests last, and each request is counted once, however it ends."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from andes_serve import chat, door, messages
from andes_serve.door import Bodies
from andes_serve.limits import Limits
from andes_serve.memory import Room
from andes_serve.responses import Responding

from andes_sdk import Pipeline

OUTCOMES = ("answered", "refused", "failed", "cancelled")


def outcomes(served: Any) -> list[int]:
    return [int(served.count(f'andes_requests_total{{outcome="{kind}"}}')) for kind in OUTCOMES]


def test_bodies_count_until_their_requests_end(pipe, start):
    with start(pipe) as served, served.held():
        with served.send(max_tokens=4000, stream=True, metadata={"x": "y" * 5000}):
            assert served.until(lambda: bool(served.server.scheduler.engine.active))
            assert served.server.bodies.taken > 5000
        assert served.until(lambda: served.server.bodies.taken == 0)
        assert served.idle()
        assert served.until(lambda: outcomes(served) == [0, 0, 0, 1])


def test_a_body_beside_others_that_leave_no_room_is_refused_with_the_numbers(pipe, start):
    with start(pipe, limits=Limits(body=20_000, bodies=30_000)) as served:
        bodies = served.server.bodies
        bodies.taken = 25_000
        got = served.http.post("/v1/chat/completions", content=b" " * 10_000)
        error = got.json()["error"]
        assert (got.status_code, error["code"], error["type"]) == (429, "memory_full", "rate_limit_error")
        assert "30000" in error["message"]
        assert "25000" in error["message"]
        assert int(got.headers["retry-after"]) >= 1
        assert bodies.taken == 25_000
        served.ask()  # a small one has room
        assert bodies.taken == 25_000


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_larger_than_all_bodies_may_be_is_too_large(pipe, start, stated):
    with start(pipe, limits=Limits(body=20_000, bodies=10_000)) as served:
        content = b" " * 15_000
        got = served.http.post("/v1/chat/completions", content=content if stated else iter([content]))
        assert (got.status_code, got.json()["error"]["code"]) == (413, "request_too_large")
        assert served.server.bodies.taken == 0


def test_a_client_that_reads_nothing_is_given_up_and_its_body_with_it(monkeypatch, caplog):
    monkeypatch.setattr(door, "PATIENCE", 0.05)

    async def play() -> None:
        bodies = Bodies(100)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[door.HELD].take(70)
            assert bodies.taken == 70
            await send({"type": "http.response.body"})

        async def unread(message: Any) -> None:
            await asyncio.sleep(60)

        await bodies.held_by(app)({"type": "http"}, None, unread)
        assert bodies.taken == 0

    asyncio.run(play())
    assert "a client read nothing of its answer" in caplog.text


@pytest.mark.parametrize("kind", ["http.response.start", "http.response.body"])
def test_a_stream_that_cannot_be_sent_cancels_its_request_at_once(kind):
    ended, left = list[str](), list[bool]()

    async def play() -> None:
        async def chunks(events: Any) -> Any:
            for _ in range(9):
                yield b"data: {}\n\n"

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            if message["type"] == kind:
                held.append(door._Unread())
                raise held[-1]

        held = list[BaseException]()  # a traceback that lives on keeps no request alive
        running = SimpleNamespace(events=lambda: None, leave=lambda: left.append(True))
        writer, metrics = SimpleNamespace(chunks=chunks), SimpleNamespace(ended=ended.append)
        with pytest.raises(door._Unread):
            await chat.Streamed(running, writer, metrics)({"type": "http"}, receive, send)
        assert (ended, left) == (["cancelled"], [True])

    asyncio.run(play())


def test_a_body_of_very_many_values_is_refused_before_it_is_read(served):
    body = b'{"model": "tiny", "messages": [' + b",".join([b'{"a": 0}'] * 130_000) + b"]}"
    got = served.http.post("/v1/chat/completions", content=body)
    assert (got.status_code, got.json()["error"]["code"]) == (400, "request_too_large")
    assert "250000 values" in got.json()["error"]["message"]


def test_a_text_that_cannot_fit_is_refused_before_its_tokens_are_counted(pipe, start, monkeypatch):
    parts = [{"type": "text", "text": "x" * 2_000_000}, {"type": "text", "text": "y"}]
    with start(pipe) as served:
        monkeypatch.setattr(Pipeline, "prepare", None)
        error = served.ask(parts, status=400)["error"]
        assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
        assert "2000001 characters" in error["message"]
        assert "4096 tokens" in error["message"]


def test_a_long_text_waits_for_room_and_a_short_one_for_nobody(pipe, start, monkeypatch):
    monkeypatch.setattr(messages, "LITTLE", 100)
    with start(pipe) as served, ThreadPoolExecutor(1) as pool:
        room = served.server.room
        room.taken = served.server.limits.opening
        served.ask("short")
        long = pool.submit(served.ask, "long " * 50)
        assert served.until(lambda: len(room._waiting) == 1)
        assert room._waiting[0][0] == messages.CHARACTER * 250
        room._waiting[0][1].get_loop().call_soon_threadsafe(room.give, room.taken)
        assert long.result()["choices"]
        assert served.until(lambda: room.taken == 0)


def test_gauges_fall_when_nothing_runs(pipe, start):
    with start(pipe) as served:
        assert outcomes(served) == [0, 0, 0, 0]
        served.ask()
        assert served.until(lambda: served.count("andes_answers") == 0)
        assert served.count('andes_memory_bytes{use="answers"}') == 0
        assert outcomes(served) == [1, 0, 0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_once_the_engine_has_answered_counts_as_failed_and_not_as_answered(
    pipe, start, monkeypatch, caplog, stream
):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    with start(pipe) as served:
        monkeypatch.setattr(chat.Chat, "_chunk" if stream else "whole", broken)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": stream}
        got = served.http.post("/v1/chat/completions", json=body)
        assert got.status_code == (200 if stream else 500)
        assert '"code":"internal_error"' in got.text
        assert got.text.endswith("data: [DONE]\n\n") == stream
        assert served.until(lambda: outcomes(served) == [0, 0, 1, 0])
        assert "ZeroDivisionError" in caplog.text
        assert served.idle()


def test_a_streamed_response_that_fails_says_so_in_its_shape(pipe, start, monkeypatch):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    with start(pipe) as served:
        monkeypatch.setattr(Responding, "ended", broken)
        body = {"model": "tiny", "input": "x", "max_output_tokens": 4, "stream": True}
        got = served.http.post("/v1/responses", json=body)
        last = json.loads(got.text.strip().rpartition("data: ")[2])
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == "internal_error"
        assert [item["type"] for item in last["response"]["output"]] == ["message"]
        assert served.until(lambda: outcomes(served) == [0, 0, 1, 0])


def test_a_fault_behind_the_handing_over_is_counted_once(pipe, start, picture, monkeypatch):
    give = Room.give

    def broken(room: Room, count: int) -> None:
        give(room, count)
        if count:
            raise asyncio.InvalidStateError

    with start(pipe) as served:
        monkeypatch.setattr(Room, "give", broken)
        served.ask([picture("red")[1]], max_tokens=4000, logit_bias={"5": 100}, status=500)
        assert served.idle()
        assert outcomes(served) == [0, 0, 1, 0]
