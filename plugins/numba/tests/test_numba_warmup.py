"""`andes warmup`: every kind of pass, once."""

import json

from typer.testing import CliRunner

from andes_sdk.cli import app

TINY = """\
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }]
image = { min_size = 28 }
"""


def warm(*arguments):
    result = CliRunner().invoke(app, ["warmup", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_kind_of_pass_runs_and_says_how_long_it_took(tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text(TINY)
    told = json.loads(warm("--config", str(config), "--json"))
    assert list(told["seconds"]) == [
        "open", "a picture and a question", "one token", "a tree of tokens", "two conversations",
    ]  # fmt: skip
    assert all(seconds > 0 for seconds in told["seconds"].values())
    assert told["facts"]["device"] == "cpu"
    assert "two conversations" in warm("--config", str(config))
