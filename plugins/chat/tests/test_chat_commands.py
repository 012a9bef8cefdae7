"""`andes chat` and `andes generate`: one question, conversations, answers for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_chat.chat import Conversation, checked_picture, converse
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.assembling import discovery
from andes_sdk.cli import app
from andes_sdk.errors import InputError
from andes_sdk.runtime.generation import GenerationOptions

TINY = """\
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }]
image = { min_size = 28 }
seed = 3
"""


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def andes(*arguments: object, code: int = 0, **options: Any) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def loads(*arguments: object, **options: Any) -> Any:
    return json.loads(andes(*arguments, **options).stdout)


# ---------------------------------------------------------------- starting


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_their_help_imports_neither_torch_nor_another_plugin(command: str) -> None:
    code = f"""
import sys
from andes_sdk.cli import main
sys.argv = ["andes", {command!r}, "--help"]
try:
    main()
except SystemExit as left:
    assert not left.code, left.code
loaded = {{m.partition(".")[0] for m in sys.modules}}
heavy = loaded & {{"torch", "transformers", "numpy", "PIL"}}
plugins = {{m for m in loaded if m.startswith("andes_") and m != "andes_sdk"}}
print("loaded:", *sorted(heavy | plugins), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["loaded:", "andes_chat"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["generate", "a", "--messages", "b"],
        ["generate", "--messages", "a", "--image", "b"],
        ["chat", "--json"],
        ["chat", "a", "--model", "b", "--config", "c"],
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str]) -> None:
    assert "Usage: " in andes(*arguments, code=2).output


def test_without_a_model_the_error_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("andes_sdk.cli.loading.extensions", lambda group: [])
    result = andes("chat", "hello", code=1)
    assert "andes-nano" in result.stderr
    assert "--model FOLDER" in result.stderr


# ---------------------------------------------------------------- one answer


def test_generate_gives_text_tokens_and_times(config: str) -> None:
    one = loads("generate", "hello", "--config", config, "--max-tokens", 4, "--json")
    assert one["finish"] in ("stop", "length")
    assert 1 <= len(one["tokens"]) <= 4
    assert one["prompt_tokens"] > 5
    assert {"prefill", "decode", "first_token"} <= set(one["seconds"])
    # the parts of the first token, and next to nothing else: reading the model is not among them
    parts = sum(one["seconds"][k] for k in ("preprocess", "vision", "projector", "prefill"))
    assert 0 < one["time_to_first_token"] < parts + 0.5
    assert one["tokens_per_second"] >= 0
    messages = json.dumps([{"role": "user", "content": "hello"}])
    piped = loads("generate", "--messages", "-", "--config", config, "--max-tokens", 4, "--json", input=messages)
    assert piped["tokens"] == one["tokens"]
    assert andes("generate", "hello", "--config", config, "--max-tokens", 4).stdout == one["text"] + "\n"


def test_messages_that_cannot_be_read_are_our_errors(config: str, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[oops")
    for source in ("talk.json", "nothing.json"):
        errors = json.loads(andes("generate", "--messages", source, "--config", config, "--json", code=1).stderr)[
            "errors"
        ]
        assert [(e["error"], e["who"]) for e in errors] == [("InputError", source)]


def test_chat_answers_one_question_as_generate_does(config: str, tmp_path: Path) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    asked = ["what?", "--image", "red.png", "--config", config, "--max-tokens", 6, "--temperature", 0.8, "--seed", 5]
    whole = loads("generate", *asked, "--json")
    result = andes("chat", *asked, "--stats")
    assert result.stdout == whole["text"] + "\n"
    assert "first token" in result.stderr
    assert loads("chat", *asked, "--json")["tokens"] == whole["tokens"]


def test_sampling_options_that_do_not_fit_are_our_errors(config: str) -> None:
    result = andes("generate", "a", "--config", config, "--temperature", -1, "--max-tokens", 0, "--json", code=1)
    assert len(json.loads(result.stderr)["errors"]) == 2


def test_a3_pictures_have_their_size_on_the_command_line(config: str, tmp_path: Path) -> None:
    picture = tmp_path / "my photo.png"
    Image.new("RGB", (1200, 900), (200, 30, 30)).save(picture)
    pipe = Pipeline.from_config(config)
    asked = [{"role": "user", "content": [{"type": "image", "image": str(picture)}]}]
    wide, small = (pipe.prepare(asked, image_size=size).media["image"].rows[0] for size in (None, 112))
    folder = pipe.save_pretrained(tmp_path / "model")
    command = ["generate", "what?", "-m", folder, "-i", picture, "--max-tokens", 1, "--json"]
    told = [loads(*command, *more) for more in ([], ["--image-size", 112])]
    assert told[0]["prompt_tokens"] - told[1]["prompt_tokens"] == wide - small > 0


def test_log_probabilities_come_on_the_command_line(config: str) -> None:
    told = loads("generate", "hello", "--config", config, "--max-tokens", 3, "--logprobs", 2, "--json")
    assert [one["token"] for one in told["logprobs"]] == told["tokens"]
    assert all(len(one["top"]) == 2 and one["logprob"] <= 0 for one in told["logprobs"])


def test_an_adapter_is_attached_and_used(config: str, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    pair = {"A": torch.randn(2, 96, generator=random), "B": torch.randn(48, 2, generator=random)}
    layer = "base_model.model.model.layers.1.mlp.down_proj"
    save_file({f"{layer}.lora_{k}.weight": v for k, v in pair.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 64}')
    ask = ["generate", "hello there", "--config", config, "--max-tokens", 6, "--json"]
    assert loads(*ask, "--adapter", f"mine={tmp_path}")["tokens"] != loads(*ask)["tokens"]
    assert "NAME=FOLDER" in json.loads(andes(*ask, "--adapter", "mine", code=1).stderr)["errors"][0]["fix"]


# ---------------------------------------------------------------- a conversation


def test_a_conversation_keeps_its_history_and_survives_errors(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    conversation = Conversation(Pipeline.from_config(config), GenerationOptions(max_tokens=3))
    lines = iter(["hello", "/image red.png", "and this?", "/image nothing.png", "without it", "", "again", "/help"])

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    converse(conversation, read)
    shown = capsys.readouterr()
    assert "nothing.png" in shown.err
    assert "/reset" in shown.err
    roles = [m["role"] for m in conversation.messages]
    assert roles == ["user", "assistant"] * 4
    assert [p["type"] for p in conversation.messages[2]["content"]] == ["image", "text"]
    assert [p["type"] for p in conversation.messages[4]["content"]] == ["text"]  # told at once, and left out
    assert conversation.command("/reset")
    assert conversation.messages == []
    assert not conversation.command("/quit")


def test_a_conversation_reads_lines_from_a_pipe_until_they_end(config: str) -> None:
    result = andes("chat", "--config", config, "--max-tokens", 2, input="hello\n/quit\nnever asked\n")
    assert len(result.stdout.splitlines()) >= 1
    assert "never asked" not in result.output


def test_a10_pictures_are_looked_at_when_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "my photo.png"
    Image.new("RGB", (120, 90), "red").save(picture)
    with pytest.raises(InputError, match="does not exist"):
        checked_picture("nothing.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (
        str(picture), f"'{picture}'", f'"{picture}" ', str(picture).replace(" ", "\\ "), "~/my photo.png",
        picture.as_uri(),
    ):  # fmt: skip
        assert checked_picture(typed)


def test_an_adapter_without_the_distribution_that_reads_it_is_told(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = discovery._entry_points
    without = lambda *group: [p for p in found(*group) if not p.value.startswith("andes_adapters")]  # noqa: E731
    monkeypatch.setattr(discovery, "_entry_points", without)
    ask = ["generate", "hello", "--config", config, "--adapter", f"mine={tmp_path}", "--json"]
    (error,) = json.loads(andes(*ask, code=1).stderr)["errors"]
    assert error["what"] == "a pipeline has no 'add_adapter'"
    assert error["why"] == "andes-adapters, which brings it, is not installed"
    assert error["fix"] == "pip install andes-adapters"
