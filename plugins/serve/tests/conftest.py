"""A server with a tiny model of random weights, on a port of its own."""

from __future__ import annotations

import base64
import io
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

TINY: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@frozen
class Served:
    """A running server, and a client of it."""

    server: Server
    url: str
    http: httpx.Client

    def ask(self, content: Any = "Tell me more.", *, status: int = 200, **given: Any) -> Any:
        """The JSON of an answer to one user message."""
        body = {"model": self.server.name, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **given}
        got = self.http.post("/v1/chat/completions", json={k: v for k, v in body.items() if v is not None})
        assert got.status_code == status, got.text
        return got.json()

    def idle(self) -> bool:
        """Whether the engine has nothing left to do, soon."""
        for _ in range(200):
            if not self.server.scheduler.engine.active and not self.server.scheduler.memory.taken:
                return True
            time.sleep(0.05)
        return False


@contextmanager
def running(pipe: Pipeline, **given: Any) -> Iterator[Served]:
    server = Server(pipe, given.pop("name", "tiny"), **given)
    app = uvicorn.Server(uvicorn.Config(create_app(server), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=app.run)
    thread.start()
    while not app.started:
        time.sleep(0.01)
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
