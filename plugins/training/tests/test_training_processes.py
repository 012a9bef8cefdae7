"""Several processes: the same numbers as one, states that any number of them reads, no waiting for the dead."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from andes_training.state import states
from PIL import Image
from safetensors.torch import load_file

from andes_sdk import Pipeline

STEPS = 6
CODE = """
import sys
from pathlib import Path
from andes_sdk import Pipeline
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
recipe = load_recipe(Path(sys.argv[1]), sys.argv[3:])
Pipeline.from_plugins(**recipe.pipeline).train(recipe, sys.argv[2], progress=Progress(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs of about two samples; every third sample has no picture, so one process often has none."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(15):
        Image.new("RGB", (28, 28), (16 * i, 99, 0)).save(folder / f"{i}.png")
        content = [{"type": "text", "text": "colour?"}]
        if i % 3:
            content.insert(0, {"type": "image_url", "image_url": {"url": f"{i}.png"}})
        answer = {"role": "assistant", "content": "red and green " * (1 + i % 4)}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    (folder / "data.jsonl").write_text("\n".join(lines))
    path = folder / "recipe.toml"
    path.write_text(f"""
name = "processes"
threads = 1
[pipeline]
plugins = [{{ aimv2 = {{ preset = "tiny" }} }}, "mlp", {{ qwen3 = {{ preset = "tiny" }} }}, "sft"]
[[stages]]
stage = "sft"
steps = {STEPS}
accumulate = 4
max_tokens = 120
checkpoint_every = 3
ema = 0.5
rates = {{ language_model = 1e-3, mlp = 1e-3, vision_encoder = 1e-3 }}
data = [{{ path = "data.jsonl" }}]
""")
    return path


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def alone(recipe: Path, out: Path) -> None:
    loaded = load_recipe(recipe)
    Pipeline.from_plugins(**loaded.pipeline).train(loaded, out, progress=Progress(out))


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def launch(recipe: Path, out: Path, *overrides: str) -> None:
    """Two processes, as a user starts them."""
    script = recipe.parent / "train.py"
    script.write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(recipe), str(out), *overrides], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def single(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("single")
    alone(recipe, out)
    return out


def require_same_run(one: Path, other: Path) -> None:
    """Float32: gradients are added up in another order, and Adam magnifies that over the steps."""
    a, b = metrics(one), metrics(other)
    assert [r["step"] for r in b] == list(range(1, STEPS + 1))
    for x, y in zip(a, b, strict=True):
        assert y["tokens"] == x["tokens"]
        assert y["samples"] == x["samples"]
        assert y["loss"] == pytest.approx(x["loss"], abs=1e-4)
        assert y["accuracy"] == pytest.approx(x["accuracy"], abs=1e-4)
        assert y["gradient_norm"] == pytest.approx(x["gradient_norm"], rel=1e-3)
    u, v = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    # six steps of 1e-3: a weight moves by up to 6e-3, those with gradients near zero in either direction
    assert max(float((u[k] - v[k]).abs().max()) for k in u) < 1e-3


def test_two_processes_give_the_losses_of_one_and_one_goes_on_with_their_state(
    recipe: Path, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    launch(recipe, out)
    require_same_run(single, out)
    last = states(out)[-1]
    assert last.name.endswith("06")
    for folder in (last, out / "model"):
        shutil.rmtree(folder)
    alone(recipe, out)
    require_same_run(single, out)


@pytest.mark.slow
def test_two_processes_that_divide_the_model_go_on_with_the_state_of_one(
    recipe: Path, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    launch(recipe, out, 'sharding="full"')
    require_same_run(single, out)
    out = tmp_path / "resumed"
    shutil.copytree(single, out)
    for folder in (states(out)[-1], out / "model"):
        shutil.rmtree(folder)
    launch(recipe, out, 'sharding="full"')
    require_same_run(single, out)


def test_a_process_that_dies_does_not_leave_the_other_waiting(recipe: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "train.py", tmp_path / "out"
    script.write_text(CODE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(script), str(recipe), str(out), "stages.0.steps=100000", "timeout=10.0"]
    shared = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    children = [
        subprocess.Popen(
            command, env={**shared, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"}, stderr=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    try:
        deadline = time.time() + 300
        while not (out.exists() and states(out)) and time.time() < deadline:
            time.sleep(0.05)
        children[1].send_signal(signal.SIGKILL)
        _, errors = children[0].communicate(timeout=120)
        assert children[0].returncode not in (0, None)
        assert b"TrainingError: another process of this run failed" in errors
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.slow
def test_packs_that_cannot_be_shared_are_refused(recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(recipe), str(tmp_path / "out"), "stages.0.accumulate=3"],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "3 packs per step cannot be shared by 2 processes" in done.stderr
