"""A judge behind a server with OpenAI's protocol: a real server, in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from andes_evaluation import judge as module
from andes_evaluation.judge import ServerJudge
from andes_evaluation.tasks.catalogue import TASKS
from attrs import evolve

from andes_sdk.errors import InputError

ASKED: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    """Grades 0.7; what is asked of model `busy` only at the second time, of `none` not at all."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ASKED.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        times = sum(one["model"] == body["model"] for one in ASKED)
        status = 404 if body["model"] == "none" else 503 if body["model"] == "busy" and times == 1 else 200
        text = "a lot" if body["model"] == "chatty" else "0.7"
        reply = json.dumps({"choices": [{"message": {"content": text}}]} if body["model"] != "mute" else {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def rated(address: str, model: str, answer: str = "x = 3") -> float:
    task = evolve(TASKS["mmvet"], judge=ServerJudge(address=address, model=model))  # type: ignore[call-arg]
    return task.rate(answer, "3", {"question": "What is x?"}).score


def test_a_judge_is_asked_greedily_and_its_number_is_the_score(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert rated(address, "fine") == 0.7
    asked = ASKED[-1]
    assert (asked["path"], asked["key"], asked["temperature"]) == ("/v1/chat/completions", "Bearer k", 0)
    assert "Ground truth: 3\nAnswer: x = 3" in asked["messages"][0]["content"]
    before = len(ASKED)
    assert rated(address, "fine", answer="") == 0.0
    assert len(ASKED) == before  # nothing was said, so there is nothing to judge


def test_a_busy_judge_is_asked_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    assert rated(address, "busy") == 0.7


@pytest.mark.parametrize(
    ("model", "message"),
    [("none", "the judge refuses"), ("mute", "has no text"), ("chatty", "gave no score")],
)
def test_a_judge_that_does_not_grade_is_told(address: str, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rated(address, model)


def test_a_judge_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    with pytest.raises(InputError, match="failed 4 times"):
        rated("http://127.0.0.1:9/v1", "fine")
