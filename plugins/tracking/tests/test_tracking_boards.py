"""What the boards' own readers find after a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError
from andes_sdk.types import Event

SHORT = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def tell(pipeline: Pipeline, stage: str, first: int, last: int) -> None:
    pipeline.tell(Event(kind="stage-start", step=first, values={"stage": stage, "steps": last, "samples": 3}))
    for step in range(first + 1, last + 1):
        pipeline.tell(Event(kind="step", step=step, values={"loss": 1.0 / step, "tokens": 7, "note": "text"}))
    pipeline.tell(Event(kind="stage-end", step=last, values={"stage": stage}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_reads_every_step_of_every_stage_and_a_resumed_run_hides_what_it_repeats(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="reads the files")
    options = {"tracking": {"folder": str(tmp_path)}}
    tell(Pipeline.from_plugins([*SHORT, options]), "sft", 0, 4)
    resumed = Pipeline.from_plugins([*SHORT, options])
    tell(resumed, "sft", 2, 5)
    tell(resumed, "mpo", 0, 1)
    found = reader.EventAccumulator(str(tmp_path / "sft"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "tokens"}
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (s, pytest.approx(1.0 / s)) for s in (1, 2, 3, 4, 5)
    ]  # float32
    other = reader.EventAccumulator(str(tmp_path / "mpo"))
    other.Reload()
    assert [e.step for e in other.Scalars("loss")] == [1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_stages_of_one_name_shared_their_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="writes the files")
    from andes_training.recipe import load_recipe

    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"messages": talk}))
    stage = '[[stages]]\nstage = "sft"\nsteps = 1\nmax_tokens = 64\ndata = [{ path = "data.jsonl" }]\n'
    (tmp_path / "r.toml").write_text(f'name = "r"\n{stage}{stage}')
    recipe = load_recipe(tmp_path / "r.toml")
    Pipeline.from_plugins([*SHORT, "sft", {"tracking": {"folder": str(tmp_path / "tb")}}]).train(
        recipe, tmp_path / "out"
    )
    files = {path.name: len(list(path.glob("events.*"))) for path in (tmp_path / "tb").iterdir()}
    assert files == {"sft": 1, "sft-01": 1}


CODE = """
from andes_sdk import Pipeline
from andes_sdk.types import Event
pipe = Pipeline.from_plugins(
    [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}},
     {"tracking": {"backend": "trackio", "project": "p", "name": "n"}}])
pipe.tell(Event(kind="stage-start", step=0, values={"stage": "sft", "steps": 2, "samples": 3}))
for step in (1, 2):
    pipe.tell(Event(kind="step", step=step, values={"loss": 1.0 / step}))
pipe.tell(Event(kind="stage-end", step=2, values={"stage": "sft"}))
from trackio.sqlite_storage import SQLiteStorage
print([(row["step"], row["sft/loss"]) for row in SQLiteStorage.get_logs("p", "n")])
"""


def test_trackio_stores_every_step(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the board itself")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[(1, 1.0), (2, 0.5)]"


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins([*SHORT, {"tracking": {"backend": "wandb"}}])
    assert "tracking.backend" in str(caught.value)
