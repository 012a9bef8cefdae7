"""`andes batch`: files of conversations answered, stopped and continued."""

import io
import json

import pytest
from andes_evaluation.batch import BatchJob
from rich.console import Console
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import InputError
from andes_sdk.runtime.generation import GenerationOptions

TINY = """\
plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }]
image = { min_size = 28 }
seed = 3
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return str(path)


def andes(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(a) for a in arguments], **options)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def loads(*arguments, **options):
    return json.loads(andes(*arguments, **options).stdout)


@pytest.fixture
def batch_file(tmp_path):
    lines = [[{"role": "user", "content": "one"}], "two", [{"role": "robot", "content": "bad"}], "four"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return tmp_path / "in.jsonl"


def test_a_batch_answers_what_it_can_and_a_second_run_tries_only_what_failed(config, batch_file, tmp_path):
    out = tmp_path / "out.jsonl"
    command = ["batch", batch_file, out, "--config", config, "--max-tokens", 3]
    result = andes(*command, "--together", 2, "--json", code=1)
    assert json.loads(result.stdout) == {"lines": 4, "skipped": 0, "answered": 3, "failed": 1}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["line"] for r in rows] == [1, 2, 3, 4]
    assert rows[2]["errors"][0]["who"] == "messages[0].role"
    alone = Pipeline.from_config(config).generate("two", GenerationOptions(max_tokens=3))
    assert rows[1]["text"] == alone.text
    again = andes(*command, "--json", code=1)
    assert json.loads(again.stdout) == {"lines": 4, "skipped": 3, "answered": 0, "failed": 1}
    assert sorted(json.loads(line)["line"] for line in out.read_text().splitlines()) == [1, 2, 3, 4]


def test_a_batch_that_was_killed_in_the_middle_of_a_line_goes_on(config, tmp_path):
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n"three"\n')
    out = tmp_path / "out.jsonl"
    pipeline = Pipeline.from_config(config)

    def run(**changes):
        options = GenerationOptions(**{"max_tokens": 2, **changes})
        return BatchJob(pipeline, options, tmp_path / "in.jsonl", out).run()

    run()
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    out.write_bytes(whole[: first + 20])
    assert run() == {"lines": 3, "skipped": 1, "answered": 2, "failed": 0}
    texts = [[json.loads(x)[k] for k in ("line", "request", "text")] for x in whole.splitlines()]
    assert [[json.loads(x)[k] for k in ("line", "request", "text")] for x in out.read_bytes().splitlines()] == texts
    with pytest.raises(InputError, match="cannot continue this file"):
        run(max_tokens=3)
    out.write_text("something else\n")
    with pytest.raises(InputError, match="cannot continue this file"):
        run()
    assert out.read_text() == "something else\n"


def test_a_batch_line_that_is_not_json_is_named_before_anything_runs(config, tmp_path):
    (tmp_path / "in.jsonl").write_text('"one"\n{oops\n')
    result = andes("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--config", config, code=1)
    assert "in.jsonl:2: is not JSON" in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_batch_shows_its_progress(config, tmp_path):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    text = io.StringIO()
    job = BatchJob(Pipeline.from_config(config), GenerationOptions(max_tokens=1), tmp_path / "in.jsonl", tmp_path / "o")
    job.run(Console(file=text, force_terminal=True, width=100))
    assert "100%" in text.getvalue()


@pytest.fixture
def artefact(config, tmp_path):
    from andes_compression.pack import pack_model
    from andes_compression.recipe import default_recipe

    pipe = Pipeline.from_config(config)
    return pack_model(pipe.model, default_recipe(pipe.model, "w8"), tmp_path / "tiny.andes", plan=pipe.plan).path


def test_a_batch_of_another_artefact_is_not_continued(artefact, config, tmp_path):
    (tmp_path / "in.jsonl").write_text('"hello"\n')
    common = [tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--max-tokens", 2, "--json"]
    assert loads("batch", *common, "--model", artefact)["answered"] == 1
    assert loads("batch", *common, "--model", artefact)["skipped"] == 1
    result = andes("batch", *common, "--config", config, code=1)
    assert "cannot continue this file" in result.output + (result.stderr or "")
