"""`andes serve` as a process: it says where it listens, answers, and lets running answers end before it stops."""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from andes_serve import cli
from starlette.testclient import TestClient
from typer.testing import CliRunner

from andes_sdk.cli import app, loading
from andes_sdk.hookspecs import MODELS

TINY = """\
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }]
image = { min_size = 28 }
"""
EXAMPLE = Path(__file__).parents[3] / "examples" / "serve_client.py"


def test_a_server_answers_and_stops_when_its_answers_are_complete(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "keys").write_text("secret\n")
    command = [sys.executable, "-m", "andes_sdk", "serve", "--config", "tiny.toml", "--port", "0", "--keys", "keys"]
    command += ["--grace", "600"]  # for the answer to end by itself, however busy the machine
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = [process.stderr.readline()]
            while not lines[-1].startswith("serving "):
                assert lines[-1], lines
                lines.append(process.stderr.readline())
            url = lines[-1].partition(" at ")[2].strip()
            assert lines[-1].startswith("serving tiny at http://127.0.0.1:")
            with httpx.Client(base_url=url, timeout=60, headers={"Authorization": "Bearer secret"}) as http:
                assert http.get("/health").json() == {"status": "ok"}
                assert httpx.get(f"{url}/v1/models").status_code == 401
                body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
                body |= {"max_tokens": 300, "stream": True, "logit_bias": {"5": 100}}
                with http.stream("POST", "/v1/chat/completions", json=body) as got:
                    found = got.iter_lines()
                    next(found)
                    process.send_signal(signal.SIGTERM)
                    rest = [line for line in found if line]
                assert rest[-1] == "data: [DONE]"
                assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            assert process.wait(60) in (0, -signal.SIGTERM)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{url}/health")
        finally:
            process.kill()


def taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_second_signal_ends_running_answers_with_an_error_and_no_traceback(tmp_path, served):
    positions = 'preset = "tiny", config = { max_position_embeddings = 1000000 }'  # an answer that goes on for hours
    (tmp_path / "tiny.toml").write_text(TINY.replace('qwen3 = { preset = "tiny"', f"qwen3 = {{ {positions}"))
    command = [sys.executable, "-m", "andes_sdk", "serve", "--config", "tiny.toml", "--port", "0"]
    command += ["--answer", "900000", "--timeout", "100000", "--grace", "10000", "--memory", "100000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while not line.startswith("serving "):
                assert line
                line = process.stderr.readline()
            body: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
            body |= {"max_tokens": 900_000, "stream": True, "logit_bias": {"5": 100}}
            url = line.partition(" at ")[2].strip()
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as got:
                found = got.iter_lines()
                next(found)
                process.send_signal(signal.SIGINT)
                port = int(url.rpartition(":")[2])
                assert served.until(lambda: not taken(port))  # the first one is heeded: of two at once one is seen
                process.send_signal(signal.SIGINT)
                rest = [line for line in found if line]
            assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == "shutting_down"
            assert rest[-1] == "data: [DONE]"
            assert process.wait(60) in (130, -signal.SIGINT)
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_a_port_in_use_is_told_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["serve", "absent", "--port", str(port)])
    assert result.exit_code == 1
    assert f"127.0.0.1:{port}: cannot listen" in result.stderr
    assert "another --port" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--keys", "absent"], "the keys cannot be read"),
        (["--concurrency", "0"], "a limit does not fit"),
        (["--adapter", "a"], "cannot read 'a'"),
        (["--adapter", "../a=x"], "cannot read '../a=x'"),
        (["--adapter", "a=x", "--adapter", "a=y"], "'a' is given twice"),
        (["--grace", "inf"], "a limit does not fit"),
        (["--timeout", "nan"], "a limit does not fit"),
        (["--temperature", "nan"], "nan is no temperature"),
        (["--temperature", "-1"], "-1 is no temperature"),
        (["--origin", "https://app.example/path"], "is no origin"),
        (["--origin", "localhost:3000"], "is no origin"),
        (["--keys", "unsendable"], "a key cannot be sent"),
    ],
)
def test_wrong_arguments_are_told_before_a_server_starts(arguments, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    (tmp_path / "unsendable").write_text("schlüssel\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["serve", "--config", "tiny.toml", *arguments])
    assert result.exit_code == 1
    assert what in result.stderr


def test_the_help_shows_what_is_taken_where_an_option_is_silent():
    shown = " ".join(CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).output.split())
    for default in ("(default: 32)", "(default: a quarter)", "(default: 600)"):
        assert default in shown


@pytest.mark.parametrize("origin", ["https://app.example:8443", "capacitor://localhost", "chrome-extension://abc", "*"])
def test_origins_of_apps_may_ask(pipe, start, monkeypatch, origin):
    seen = list[Any]()
    monkeypatch.setattr(loading, "open_pipeline", lambda *given, **more: pipe)
    monkeypatch.setattr(cli, "run", lambda app, server, at: seen.append(app) or at.close())
    result = CliRunner().invoke(app, ["serve", "tiny", "--port", "0", "--origin", origin])
    assert (result.exit_code, result.stderr) == (0, "")
    with TestClient(seen[0]) as http:
        got = http.get("/health", headers={"Origin": "https://x.example" if origin == "*" else origin})
        assert got.headers["access-control-allow-origin"] == origin
        if origin != "*":
            got = http.get("/health", headers={"Origin": "https://x.example"})
            assert "access-control-allow-origin" not in got.headers


def test_a_folder_keeps_the_dots_of_its_name(tmp_path):
    (tmp_path / "Qwen3-0.6B").mkdir()
    (tmp_path / "model.andes").write_bytes(b"")
    names = [cli.own_name_of(tmp_path / "Qwen3-0.6B"), cli.own_name_of(tmp_path / "model.andes")]
    assert names == ["Qwen3-0.6B", "model"]
    assert cli.own_name_of(Path("owner/a-0.6b")) == "a-0.6b"


def test_without_a_model_the_first_one_that_is_installed_is_served(pipe, monkeypatch):
    opened, served = list[Any](), list[Any]()

    def opening(*given: Any, **more: Any) -> Any:
        opened.append(given)
        return pipe

    def run(app: Any, server: Any, at: socket.socket) -> None:
        served.append(server.name)
        at.close()

    monkeypatch.setattr(cli, "extensions", lambda group: ["a-model", "b-model"] if group == MODELS else [])
    monkeypatch.setattr(loading, "open_pipeline", opening)
    monkeypatch.setattr(cli, "run", run)
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert (opened, served) == ([("a-model", None)], ["a-model"])


def test_without_a_model_and_none_installed_the_error_says_what_to_give(monkeypatch):
    monkeypatch.setattr(cli, "extensions", lambda group: [])
    result = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert "andes serve: no model was given" in result.stderr
    assert "give MODEL" in result.stderr


def test_the_example_talks_to_a_server(served, picture):
    openai = pytest.importorskip("openai", reason="the client of OpenAI is not installed")
    spec = importlib.util.spec_from_file_location("serve_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    said = example.talk(client, "tiny", example.part_of(None))
    assert said["json"]["shape"] in ("circle", "rectangle", "triangle")
    assert said["read_before"] > 10
    assert isinstance(said["color"], str)
