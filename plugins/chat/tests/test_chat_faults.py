"""What broke the commands for answers, and should not again."""

import io
import sys

import pytest
from andes_chat import chat
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import InputError

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Pipeline.from_plugins(TINY).save_pretrained(tmp_path_factory.mktemp("model") / "tiny")


def andes(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_log_probabilities_that_nobody_would_see_are_refused(command):
    assert "--json only" in andes(command, "hi", "--logprobs", 2, code=2).stderr


def test_stats_beside_json_are_refused():
    assert "leave --stats out" in andes("chat", "hi", "--stats", "--json", code=2).stderr


def test_a_line_that_is_no_utf_8_does_not_end_the_conversation(model):
    result = andes("chat", "-m", model, "--max-tokens", 1, input=b"hi\xff\n\nho\n/help\n")
    assert "stdin: a line is no text" in result.stderr
    assert "/reset" in result.stderr  # it went on


def test_a_line_is_read_in_the_encoding_of_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"h\xe4\nh\x81"), encoding="cp1252"))
    assert chat._prompt() == "hä\n"
    with pytest.raises(InputError):
        chat._prompt()
    with pytest.raises(EOFError):
        chat._prompt()
