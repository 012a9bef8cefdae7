"""A server with a tiny model of random weights, on a port of its own."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from andes_serve.app import create_app
from andes_serve.server import Server
from attrs import frozen
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.runtime.engine import Engine

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def until(true: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether something becomes true in time; long enough for machines that are busy with other work."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@frozen
class Served:
    """A running server, and a client of it."""

    server: Server
    url: str
    http: httpx.Client
    until = staticmethod(until)

    def ask(self, content: Any = "Tell me more.", *, status: int = 200, **given: Any) -> Any:
        """The JSON of an answer to one user message."""
        body = {"model": self.server.name, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **given}
        got = self.http.post("/v1/chat/completions", json={k: v for k, v in body.items() if v is not None})
        assert got.status_code == status, got.text
        return got.json()

    def send(self, **given: Any) -> socket.socket:
        """A request whose answer nobody reads yet; closing the socket is leaving."""
        body = {"model": self.server.name, "messages": [{"role": "user", "content": "x"}], **given}
        data = json.dumps(body).encode()
        host, _, port = self.url.removeprefix("http://").partition(":")
        made = socket.create_connection((host, int(port)), timeout=120)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
        made.sendall(head.encode() + data)
        return made

    def idle(self) -> bool:
        """Whether the engine has nothing left to do, soon."""
        scheduler = self.server.scheduler
        return until(lambda: not scheduler.engine.active and not scheduler.memory.taken)

    def count(self, metric: str) -> float:
        """A figure of `/metrics`; 0 before it is first counted."""
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{metric} ")), 0.0)

    @contextmanager
    def held(self) -> Iterator[Callable[[int], None]]:
        """The engine takes as many steps as it is given, and no others: what is running goes on running."""
        engine, own = self.server.scheduler.engine, Engine.step
        left, given = [0], threading.Event()

        def step(one: Engine) -> None:
            if one is not engine or given.is_set() or left[0] > 0:
                left[0] -= 1
                own(one)
            else:
                time.sleep(0.005)

        def give(count: int) -> None:
            left[0] = count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", step)
            try:
                yield give
            finally:
                given.set()


@contextmanager
def running(pipe: Pipeline, **given: Any) -> Iterator[Served]:
    server = Server(pipe, given.pop("name", "tiny"), **given)
    app = uvicorn.Server(uvicorn.Config(create_app(server), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=app.run)
    thread.start()
    assert until(lambda: app.started or not thread.is_alive())
    assert app.started
    url = f"http://127.0.0.1:{app.servers[0].sockets[0].getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=120) as http:
            yield Served(server, url, http)
    finally:
        app.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def pipe() -> Pipeline:
    return Pipeline.from_plugins(TINY, image={"min_size": 28})


@pytest.fixture(scope="module")
def served(pipe: Pipeline) -> Iterator[Served]:
    with running(pipe) as one:
        yield one


@pytest.fixture
def start() -> Callable[..., AbstractContextManager[Served]]:
    return running


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def picture() -> Callable[[str], tuple[Image.Image, dict[str, Any]]]:
    """A picture of one colour, and the part of a message that shows it."""

    def make(colour: str) -> tuple[Image.Image, dict[str, Any]]:
        image = Image.new("RGB", (84, 56), colour)
        return image, {"type": "image_url", "image_url": {"url": data_url(image)}}

    return make
