"""Requests that nobody should send: each gets an error that names the fault, and the server goes on."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from andes_serve import door, items, messages, responses
from andes_serve.app import create_app
from andes_serve.jobs import Piece
from andes_serve.limits import Limits
from andes_serve.memory import Room
from andes_serve.server import READERS
from andes_serve.tools import Calls, told

from andes_sdk.inputs.images import load_image
from andes_sdk.inputs.sources import read_source

NESTED = "[" * 100_000


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


@pytest.fixture
def held(monkeypatch):
    """Pictures are opened when the event is set; the list says how many bytes each had that wanted to."""
    opening, opened = threading.Event(), list[int]()

    def load(data, limits):
        opened.append(len(data))
        assert opening.wait(120)
        return load_image(data, limits=limits)

    monkeypatch.setattr(messages, "load_image", load)
    return opening, opened


def test_pictures_are_not_opened_before_there_is_room_for_them(pipe, start, picture, held):
    opening, opened = held
    one = [picture("red")[1]]
    count = messages.needed(messages.fetched([{"role": "user", "content": one}], Limits(), remote=False)[1])
    assert count > 84 * 56 * 16  # a header tells
    with start(pipe, limits=Limits(opening=count, queue=1)) as served, ThreadPoolExecutor(3) as pool:
        first = pool.submit(served.ask, one)
        assert served.until(lambda: len(opened) == 1)
        second = pool.submit(served.ask, one)
        assert served.until(lambda: len(served.server.room._waiting) == 1)
        assert len(opened) == 1
        assert served.ask(one, status=429)["error"]["code"] == "queue_full"
        error = served.ask(one * 2, status=400)["error"]
        assert (error["code"], str(count) in error["message"]) == ("memory_exceeded", True)
        with served.send(messages=[{"role": "user", "content": "no picture"}], max_tokens=2) as reader:
            assert reader.recv(12) == b"HTTP/1.1 200"  # waits for nobody
        opening.set()
        assert first.result()["choices"] == second.result()["choices"]
        assert served.until(lambda: served.server.room.taken == 0)


def test_a_client_that_leaves_gives_no_room_back_that_its_thread_still_uses(pipe, start, picture, held):
    opening, opened = held
    left = 'andes_requests_total{outcome="cancelled"}'
    with start(pipe) as served:
        content = [picture("red")[1]]
        with served.send(messages=[{"role": "user", "content": content}]):
            assert served.until(lambda: len(opened) == 1)
        assert served.until(lambda: served.count(left) == 1)
        assert served.server.room.taken > 0
        opening.set()
        assert served.until(lambda: served.server.room.taken == 0)
        assert served.server.coming.taken == 0


def test_pictures_that_come_slowly_are_bounded_and_hold_up_no_text(pipe, start, picture, monkeypatch):
    going, fetching = threading.Event(), list[str]()

    def read(value, name, remote, limits):
        fetching.append(value)
        assert going.wait(120)
        return read_source(picture("red")[1]["image_url"]["url"], name, remote, limits)

    monkeypatch.setattr(messages, "read_source", read)
    limits, count = Limits(picture=1 << 20, opening=READERS << 20), READERS + 4
    remote = [{"type": "image_url", "image_url": {"url": "https://pictures.example/x.png"}}]
    with start(pipe, limits=limits, remote=True) as served, ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(served.ask, remote) for _ in range(count)]
        assert served.until(lambda: len(fetching) == READERS and len(served.server.coming._waiting) == 4)
        assert served.server.coming.taken == limits.opening
        served.ask("no picture")
        going.set()
        assert all(one.result()["choices"] for one in asked)
        assert served.until(lambda: served.server.coming.taken == served.server.room.taken == 0)


@pytest.mark.parametrize("part", [{}, {"image_url": 5}, {"image_url": {"url": None}}, {"image_url": "http://x"}])
def test_what_may_come_is_known_before_it_is_read(part):
    limits = Limits()
    asked = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "image_url", **part}, 5]}]
    assert messages.coming(asked, limits) == (limits.picture if part.get("image_url") == "http://x" else 1)
    assert messages.coming(asked[:1], limits) == 0


def test_the_time_of_a_request_runs_while_it_waits_for_room(pipe, start, picture):
    failed = 'andes_requests_total{outcome="failed"}'
    with start(pipe, limits=Limits(timeout=0.5)) as served:
        served.server.room.taken = served.server.limits.opening
        error = served.ask([picture("red")[1]], status=504)["error"]
        assert error["code"] == "timeout"
        assert served.count(failed) == 1
        assert (len(served.server.room._waiting), served.server.coming.taken) == (0, 0)


def test_the_engine_is_told_when_a_request_came(pipe, start, picture, monkeypatch):
    jobs = list[Any]()
    with start(pipe) as served:
        submit, room = served.server.scheduler.submit, served.server.room
        monkeypatch.setattr(served.server.scheduler, "submit", lambda job: jobs.append(job) or submit(job))
        room.taken = served.server.limits.opening
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(served.ask, [picture("red")[1]])
            assert served.until(lambda: len(room._waiting) == 1)
            waited = time.perf_counter()
            room._waiting[0][1].get_loop().call_soon_threadsafe(room.give, room.taken)
            assert answer.result()["choices"]
        assert jobs[0].start < waited


def test_one_that_leaves_while_it_waits_for_room_lets_the_next_one_in():
    async def play() -> None:
        room = Room(10, 8)
        await room.take(6)
        large, small = asyncio.ensure_future(room.take(9)), asyncio.ensure_future(room.take(4))
        await asyncio.sleep(0)
        assert not small.done()  # in the order of arrival
        large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        await small
        assert room.taken == 10
        room.give(6)
        room.give(4)
        assert room.taken == 0

    asyncio.run(play())


def test_room_that_is_given_back_skips_one_that_has_just_been_cancelled():
    async def play() -> None:
        room = Room(10, 8)
        await room.take(10)
        gone, come, left = (asyncio.ensure_future(room.take(10)) for _ in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        room.give(10)  # before the cancelled one has run
        assert room.taken == 10
        come.cancel()  # its turn has come, and it does not know yet
        await asyncio.gather(gone, come, return_exceptions=True)
        await left
        assert (room.taken, len(room._waiting)) == (10, 0)

    asyncio.run(play())


def test_a_fault_behind_the_handing_over_cancels_the_request_and_is_told(pipe, start, picture, monkeypatch, caplog):
    give = Room.give

    def broken(room, count):
        give(room, count)
        if count:
            raise asyncio.InvalidStateError

    with start(pipe) as served:
        monkeypatch.setattr(Room, "give", broken)
        error = served.ask([picture("red")[1]], max_tokens=4000, logit_bias={"5": 100}, status=500)["error"]
        assert error["code"] == "internal_error"
        assert served.idle()
        assert served.count('andes_requests_total{outcome="answered"}') == 0
        assert served.count('andes_requests_total{outcome="failed"}') == 1
        assert "a request failed" in caplog.text


def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(door, "PATIENCE", 0.2)
    host, _, port = served.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as slow:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{"
        slow.sendall(head)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    served.ask()


def test_readers_that_stop_reading_or_leave_hold_nothing_for_ever(served):
    for _ in range(4):
        with served.send(max_tokens=200, stream=True) as reader:
            reader.recv(10)
    served.ask()
    assert served.idle()


def test_a_stream_whose_reader_leaves_before_its_first_chunk_is_cancelled_and_counted(pipe, start, monkeypatch):
    jobs, sent, calls = list[Any](), list[Any](), 0
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4000, "stream": True}
    scope = {
        "type": "http", "asgi": {"spec_version": "2.3"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/chat/completions", "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
        "headers": [], "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            return {"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}
        if calls == 2:  # while the first event is waited for, the client stays
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await asyncio.sleep(0)  # as where a buffer is full: here the task learns that it is cancelled
        sent.append(message)

    with start(pipe) as served:
        submit = served.server.scheduler.submit
        monkeypatch.setattr(served.server.scheduler, "submit", lambda job: jobs.append(job) or submit(job))

        async def play() -> None:
            await create_app(served.server)(scope, receive, send)
            assert (calls, sent) == (3, [])
            assert jobs[0].cancelled
            assert await asyncio.to_thread(served.idle)

        with served.held() as give:
            give(40)
            asyncio.run(play())
        counts = [served.count(f'andes_requests_total{{outcome="{kind}"}}') for kind in ("cancelled", "answered")]
        assert counts == [1, 0]


def test_items_of_a_streamed_response_hold_their_own_text_alone():
    told = []
    writer = items.Writer(lambda kind, **more: told.append((kind, more)), Calls())
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


def test_a_call_whose_argument_holds_the_mark_of_its_end_is_read():
    text = 'So: <tool_call>\n{"name": "say", "arguments": {"text": "</tool_call>"}}\n</tool_call>'
    for size in (1, 7, 1000):
        calls, found, said = Calls(), [], ""
        for start in range(0, len(text), size):
            plain, some = calls.feed(text[start : start + size], final=start + size >= len(text))
            said, found = said + plain, found + some
        assert said.strip() == "So:"
        assert [call["function"]["arguments"] for call in found] == ['{"text": "</tool_call>"}']
    assert Calls().feed(f"<tool_call>\n{NESTED}\n</tool_call>", final=True)[1] == []


def test_results_and_calls_in_a_row_are_one_message_each():
    results = [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "user", "content": "c"}]
    made, origins = told([*results, results[0]], {})
    both = "<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>"
    last = "<tool_response>\na\n</tool_response>"
    assert [m["content"] for m in made] == [both, "c", last]
    assert origins == [0, 2, 3]
    call = {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"}
    asked = responses.ResponseRequest(model="x", input=[call, call, {"role": "user", "content": "c"}, call])
    first, _ = responses.messages_of(asked, [])
    assert [len(m.get("tool_calls", ())) for m in first] == [2, 0, 1]
    more, _ = responses.messages_of(asked, first)
    assert [len(m.get("tool_calls", ())) for m in more] == [2, 0, 3, 0, 1]
    assert len(first[-1]["tool_calls"]) == 1  # what is kept stays as it was
