"""Ray Serve: two replicas on one machine, one of them killed under load."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError, ConfigError
from andes_sdk.runtime.generation import GenerationOptions

for name in ("ray.serve", "aiohttp_cors"):  # the second comes with ray[serve], not with ray[data]
    pytest.importorskip(name, reason="ray[serve] is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own

PORT = 18_427


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pipe = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}])
    return pipe.save_pretrained(tmp_path / "tiny")


@pytest.fixture
def address(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import ray
    from andes_serve.ray import app
    from ray import serve

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(app({"model": str(model), "replicas": 2, "cpus": "0.5"}), name="andes")
        yield f"http://127.0.0.1:{PORT}"
    finally:
        serve.shutdown()
        ray.shutdown()


def until(true: Callable[[], bool], seconds: float = 300) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def replicas() -> list[int]:
    """Processes of the replicas."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if file.read_bytes().startswith(b"ray::ServeReplica:andes:"):
                found.append(int(file.parent.name))
    return found


def test_arguments_are_checked() -> None:
    from andes_serve.ray import app

    for given in ({}, {"model": "x", "replicas": "two"}, {"model": "x", "colour": "red"}):
        with pytest.raises((AndesError, ExceptionGroup)):
            app(given)


def test_replicas_have_the_keys_of_whoever_builds_the_application(model, tmp_path, monkeypatch):
    import pickle

    from andes_serve.ray import Application
    from starlette.testclient import TestClient

    (tmp_path / "keys").write_text("two\n")
    monkeypatch.setenv("ANDES_API_KEY", "first-key")
    given = Application(model=str(model), name="tiny", keys=str(tmp_path / "keys"))
    assert "first-key" not in repr(given)
    moved = pickle.loads(pickle.dumps(given))  # to another machine, as Ray moves it
    monkeypatch.delenv("ANDES_API_KEY")
    (tmp_path / "keys").unlink()
    with TestClient(moved.build()) as client:
        assert client.get("/v1/models").status_code == 401
        for key in ("first-key", "two"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    monkeypatch.setenv("ANDES_API_KEY", "first-key,third")
    with pytest.raises(ConfigError, match="keys that others lack"):
        moved.build()


@pytest.mark.slow
def test_a_replica_that_dies_costs_only_what_it_was_doing(address: str, model: Path) -> None:
    alone = Pipeline.from_pretrained(model).generate("Tell me more.", GenerationOptions(max_tokens=8)).text
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me more."}], "max_tokens": 8}
    told: list[Any] = []
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=address, timeout=60) as http:
            while not ended.is_set():
                began = time.monotonic()
                try:
                    got = http.post("/v1/chat/completions", json=body)
                    good = got.status_code == 200 and got.json()["choices"][0]["message"]["content"] == alone
                    told.append((began, "good" if good else got.status_code))
                except httpx.TransportError as error:
                    told.append((began, type(error).__name__))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()

    def good(after: float = 0.0) -> int:
        return sum(what == "good" and began > after for began, what in list(told))

    try:
        assert until(lambda: good() > 10)
        first, *others = replicas()
        assert others
        killed = time.monotonic()
        os.kill(first, signal.SIGKILL)
        assert until(lambda: good(killed) > 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    counts = Counter(what for _, what in told)
    failed = [began for began, what in told if what != "good"]
    assert len(failed) <= len(threads), counts  # no more than what was in flight
    assert all(began < killed + 1 for began in failed)  # Ray knows of it a moment later
    assert all(isinstance(what, str | int) and what != 200 for _, what in told if what != "good")
