"""What a fresh reader met: folders that were lost, rows that were torn, arguments of other kinds."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from attrs import evolve
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import AssemblyError, CheckpointError, ConfigError, InputError, SessionError
from andes_sdk.files import Journal, write_atomically
from andes_sdk.runtime.options import GenerationOptions

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_plugins(TINY)


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    return pipeline.save_pretrained(tmp_path_factory.mktemp("saved") / "tiny")


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("config", ['{"name": "my web app"}', '{"model_type": "bert"}', "[]", "no json"])
def test_a_folder_of_another_program_with_a_config_json_is_not_replaced(pipeline, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "index.js").write_text("mine")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pipeline.save_pretrained(tmp_path)
    assert (tmp_path / "index.js").read_text() == "mine"


@pytest.mark.parametrize("layout", ["andes", "published"])
@pytest.mark.parametrize("name", ["thesis.tex", "deep/er/thesis.tex"])
def test_a_checkpoint_with_files_of_the_user_is_not_replaced_and_they_are_named(pipeline, tmp_path, layout, name):
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder, layout=layout)
    pipeline.save_pretrained(folder, layout=layout)  # what we wrote is ours
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(CheckpointError, match="no part of a checkpoint") as caught:
        pipeline.save_pretrained(folder, layout=layout)
    assert name in caught.value.why
    assert (folder / name).read_text() == "mine"


def test_a_checkpoint_that_was_edited_is_not_taken_for_ours(pipeline, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "andes.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        pipeline.save_pretrained(folder)


# ---------------------------------------------------------------- full disks


def limited(source, *arguments, room):
    """Run Python where no file may grow beyond `room` bytes, as on a disk that is full."""

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    command = [sys.executable, "-c", source, *map(str, arguments)]
    return subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=False)


def test_a_row_that_a_full_disk_tears_is_an_error_and_is_cut_off_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    Journal(path).add({"number": 1})
    whole = path.read_bytes()
    program = """
import sys
from pathlib import Path
from andes_sdk.errors import InputError
from andes_sdk.files import Journal, write_atomically
from andes_sdk.runtime.options import GenerationOptions
try:
    Journal(Path(sys.argv[1])).add("x" * 100)
except InputError as error:
    print(error)
"""
    done = limited(program, path, room=len(whole) + 20)
    assert "rows.jsonl: cannot be written" in done.stdout, done.stderr
    assert "make room" in done.stdout
    assert path.read_bytes() == whole


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_device_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="cannot be written") as caught:
        Journal(tmp_path / "rows.jsonl").add(1)
    assert caught.value.who.endswith("rows.jsonl")


def test_a_place_where_nothing_can_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "file" / "rows.jsonl").add(1)


def test_rows_that_cannot_be_rewritten_stay(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps("x" * 50) + "\n" for _ in range(3)))
    program = """
import sys
from pathlib import Path
from andes_sdk.errors import InputError
from andes_sdk.files import Journal, write_atomically
from andes_sdk.runtime.options import GenerationOptions
rows = iter([True, True, False])
try:
    Journal(Path(sys.argv[1])).keep(lambda row: next(rows))
except InputError as error:
    print(error)
"""
    done = limited(program, path, room=60)
    assert "rows.jsonl: cannot be written" in done.stdout, done.stderr
    assert len(path.read_text().splitlines()) == 3
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_file_that_appears_does_not_take_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        write_atomically(tmp_path / "pipe", b"content")
    assert os.listdir(tmp_path) == ["pipe"]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("stop", [">", "<think>", "think>\n"])
def test_a_stop_string_in_the_prefilled_think_does_not_end_the_answer(pipeline, stop):
    options = GenerationOptions(max_tokens=6, think=True)
    free = pipeline.generate("hi", options)
    assert free.text.startswith("<think>")
    stopped = pipeline.generate("hi", evolve(options, stop=stop))
    assert stopped.text.startswith("<think>")
    assert free.text.startswith(stopped.text)
    assert "".join(pipeline.stream("hi", evolve(options, stop=stop))) == stopped.text


@pytest.mark.parametrize("conversations", ["hey", {"role": "user", "content": "hey"}, 3, None])
def test_what_is_no_list_of_conversations_is_refused(pipeline, conversations):
    with pytest.raises(InputError, match="expected a list of conversations"):
        pipeline.generate_batch(conversations, GenerationOptions(max_tokens=1))


def test_no_options_for_two_conversations_are_told(pipeline):
    with pytest.raises(ConfigError, match="0 options for 2 conversations"):
        pipeline.generate_batch(["a", "b"], [])


@pytest.mark.parametrize("options", [{"max_tokens": 2}, {}, "greedy", 3])
def test_options_of_another_kind_are_refused_by_name(pipeline, options):
    for ask in (pipeline.generate, lambda *a: list(pipeline.stream(*a))):
        with pytest.raises(ConfigError, match="options: expected GenerationOptions"):
            ask("hi", options)


# ---------------------------------------------------------------- arguments of another kind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.5), ("seed", "a"), ("seed", True), ("seed", -1), ("seed", 2**70), ("seed", None),
        ("image", "chat"), ("image", 3), ("device", 3), ("device", None), ("backend", ["torch"]), ("backend", 1),
        ("dtype", 16), ("weights", 3),
    ],
)  # fmt: skip
def test_every_argument_of_from_plugins_is_checked_beside_the_list(name, value):
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*TINY, "nonsense"], **{name: value})
    found = [str(one) for one in caught.value.problems]
    assert any(name in text for text in found), found
    assert any("nonsense" in text for text in found), found


@pytest.mark.parametrize(("name", "value"), [("seed", 1.5), ("seed", -1), ("image", "chat"), ("device", 3)])
def test_every_argument_of_from_pretrained_is_checked(saved, name, value):
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_pretrained(saved, **{name: value})
    assert name in str(caught.value)


def test_the_largest_seed_that_is_taken_can_be_saved_and_opened(tmp_path):
    seed = (1 << 63) - 1
    pipeline = Pipeline.from_plugins(TINY, seed=seed)
    assert Pipeline.from_pretrained(pipeline.save_pretrained(tmp_path / "m")).plan.seed == seed


def test_what_is_no_path_is_refused_by_the_name_of_its_argument(pipeline):
    with pytest.raises(ConfigError, match="source: expected a path, got None"):
        Pipeline.from_pretrained(None)
    with pytest.raises(ConfigError, match="folder: expected a path, got 3"):
        pipeline.save_pretrained(3)
    with pytest.raises(ConfigError, match="folder: expected a path, got 3"):
        pipeline.add_adapter("a", 3)
    with pytest.raises(ConfigError, match="name: expected a text, got 3"):
        pipeline.add_adapter(3, "folder")


class Rule:
    """A constraint that gives what it is told to, or raises it."""

    def __init__(self, gives):
        self.gives = gives

    def allowed(self, answer):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


def test_a_constraint_that_is_none_raises_or_gives_no_tensor_is_named(pipeline):
    with pytest.raises(ConfigError, match="expected an object with a method `allowed`, got 3"):
        GenerationOptions(constraint=3)
    with pytest.raises(SessionError, match=r"constraint Rule: failed[\s\S]*KeyError: 'x'"):
        pipeline.generate("hi", GenerationOptions(max_tokens=1, constraint=Rule(KeyError("x"))))
    with pytest.raises(SessionError, match="constraint Rule: gives list"):
        pipeline.generate("hi", GenerationOptions(max_tokens=1, constraint=Rule([True])))
    with pytest.raises(SessionError, match="constraint Rule: allows 1 of 1 tokens"):
        pipeline.generate("hi", GenerationOptions(max_tokens=1, constraint=Rule(torch.tensor(True))))


@pytest.mark.parametrize("tokens", [[1.5], ["a"], [None], 3])
def test_what_is_no_list_of_ids_is_refused_by_a_session(pipeline, tokens):
    session = pipeline.session()
    with pytest.raises(SessionError, match="tokens: no ids of tokens"):
        session.extend(tokens)
    session.close()


# ---------------------------------------------------------------- commands


def andes(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


@pytest.mark.parametrize("name", ["qwen3", "mlp"])
def test_options_of_a_models_own_plugins_reach_them(saved, name):
    told = andes("generate", "-m", saved, "hi", "-o", f"{name}.foo=1", code=1).stderr
    assert "unknown option 'foo'" in told
    told = andes("generate", "-m", saved, "hi", "-o", "qwen4.foo=1", code=1).stderr
    assert "did you mean 'qwen3'" in told
    assert "it takes no options" not in told


def test_a_backend_that_is_not_there_is_told_with_those_that_are_installed(saved):
    told = andes("generate", "-m", saved, "hi", "--backend", "banana", code=1).stderr
    assert "numba" in told
    assert "torch" in told


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["eval", "{}", "banana"], "no plugin of this pipeline brings a benchmark of that name"),
        (["compress", "{}", "banana", "--out", "{}.z"], "no plugin of this pipeline brings 'banana'"),
    ],
)
def test_what_no_plugin_brings_is_told_without_talk_of_options(saved, command, what):
    told = andes(*(str(part).format(saved) for part in command), code=1).stderr
    assert what in told
    assert "takes no options" not in told
    assert "there is none here; or add a plugin that brings it" in told or "known: " in told


def test_a_plugin_beside_a_list_in_a_file_is_not_ignored(tmp_path):
    (tmp_path / "list.toml").write_text(
        'plugins = [{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }]'
    )
    told = andes(
        "export", "gguf", tmp_path / "list.toml", tmp_path / "x.gguf", "--plugin", "nonexistent", code=1
    ).stderr
    assert "no installed plugin is named 'nonexistent'" in told
