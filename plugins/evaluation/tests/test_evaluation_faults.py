"""What broke `andes batch`, and should not again."""

import json
import os
import subprocess
import sys

import pytest
import torch
from andes_evaluation.batch import BatchJob
from PIL import Image
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import InputError
from andes_sdk.files import Journal
from andes_sdk.runtime.generation import GenerationOptions

TINY = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.fixture
def model(tmp_path):
    return Pipeline.from_plugins(TINY).save_pretrained(tmp_path / "model")


def andes(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def batch(tmp_path, model, *more, code=0):
    return andes("batch", tmp_path / "in.jsonl", tmp_path / "o", "-m", model, "--max-tokens", 2, *more, code=code)


def test_answers_of_two_models_that_lie_in_one_folder_one_after_another_are_not_mixed(tmp_path, model):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    batch(tmp_path, model)
    pipeline = Pipeline.from_plugins(TINY)
    with torch.no_grad():
        next(iter(pipeline.model.parameters())).view(-1)[1] += 1e-6  # less than bfloat16 tells
    pipeline.save_pretrained(model)
    assert "cannot continue this file" in batch(tmp_path, model, code=1).stderr


def test_one_model_by_two_paths_is_the_same(tmp_path, model, monkeypatch):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    batch(tmp_path, model)
    monkeypatch.chdir(tmp_path)
    assert json.loads(batch(tmp_path, "model", "--json").stdout)["skipped"] == 1


def test_another_picture_of_the_same_name_is_another_request(tmp_path, model):
    Image.new("RGB", (28, 28), "red").save(tmp_path / "p.png")
    parts = [{"type": "image", "image": str(tmp_path / "p.png")}, {"type": "text", "text": "what?"}]
    (tmp_path / "in.jsonl").write_text(json.dumps([{"role": "user", "content": parts}]) + "\n")
    batch(tmp_path, model)
    assert json.loads(batch(tmp_path, model, "--json").stdout)["skipped"] == 1
    Image.new("RGB", (28, 28), "blue").save(tmp_path / "p.png")
    assert "cannot continue this file" in batch(tmp_path, model, code=1).stderr


def test_the_adapter_counts_by_its_files(tmp_path, model):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    pipeline = Pipeline.from_pretrained(model)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_text(name)

    def base(folder):
        return BatchJob(pipeline, GenerationOptions(), tmp_path / "in.jsonl", tmp_path / "o", adapter=folder)._base()

    assert base(tmp_path / "a") == base(tmp_path / "a") != base(tmp_path / "b")


def test_a_full_disk_ends_the_batch_with_an_error_and_no_torn_row(tmp_path, model):
    (tmp_path / "in.jsonl").write_text('"one"\n"two"\n')
    program = """
import resource, signal, sys
from andes_sdk.cli import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
sys.argv = ["andes", *sys.argv[1:]]
app()
"""
    arguments = ["batch", tmp_path / "in.jsonl", tmp_path / "o", "-m", model, "--max-tokens", "2"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr, done.stderr
    assert "make room" in done.stderr
    assert "Traceback" not in done.stderr
    rows = (tmp_path / "o").read_bytes()
    assert not rows or rows.endswith(b"\n")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_an_out_that_is_no_file_is_refused_instead_of_read_for_ever(tmp_path, kind):
    (tmp_path / "in.jsonl").write_text('"one"\n')
    out = tmp_path / "o"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: path.symlink_to("/dev/zero")}[kind](out)
    told = andes("batch", tmp_path / "in.jsonl", out, "-m", tmp_path / "no model is read", code=1).stderr
    assert "o: is no regular file" in told


def test_a_journal_that_is_a_pipe_is_not_read_for_ever(tmp_path):
    os.mkfifo(tmp_path / "o")
    with pytest.raises(InputError, match="cannot be read"):
        Journal(tmp_path / "o").rows()
