"""What a fresh reader met: folders that were lost, rows that were torn, arguments of other kinds."""

import json
import shutil

import pytest

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError

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
