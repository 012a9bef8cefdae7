"""The whole chain, alignment to preferences, in one run: every stage learns, and kills leave no trace."""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from andes_training.progress import METRICS, Progress
from andes_training.recipe import load_recipe
from andes_training.state import states
from safetensors.torch import load_file

from andes_sdk import Pipeline
from andes_sdk.testing.elsewhere import started

EXAMPLES = Path(__file__).parents[2] / "examples"
STAGES = ["alignment", "joint", "multitask", "sft", "mpo"]
STEPS = (16, 16, 8, 16, 16)
"""The recipe's stages, shortened."""
SHORT = [
    option
    for index, steps in enumerate(STEPS)
    for option in (f"stages.{index}.steps={steps}", f"stages.{index}.warmup=2", f"stages.{index}.checkpoint_every=4")
]
SEED = 5


@pytest.fixture(scope="module")
def example() -> ModuleType:
    pytest.importorskip("easy_vqa", reason="the example's pictures")
    pytest.importorskip("sklearn", reason="the example's digits")
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("train_chain", EXAMPLES / "train_chain.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    return module


@pytest.fixture(scope="module")
def folder(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    example.write_data(folder)
    return folder


def train(folder: Path, out: Path) -> dict[str, torch.Tensor]:
    recipe = load_recipe(folder / "recipe.toml", SHORT)
    with Progress(out) as progress:
        model = Pipeline.from_plugins(**recipe.pipeline).train(recipe, out, progress=progress)
    return load_file(model / "model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, torch.Tensor]:
    return train(folder, folder / "whole")


def steps_of(out: Path) -> list[dict[str, object]]:
    """Complete lines of the metrics, without times."""
    path = out / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def start_and_kill(folder: Path, out: Path, stage: int, step: int, delay: float) -> str:
    """Run `andes train` as a process of its own, and kill it a moment after a step -> the stage it was in."""
    code = "import sys; from andes_sdk.cli import main; sys.exit(main())"
    options = [word for option in SHORT for word in ("--set", option)]
    words = ["train", str(folder / "recipe.toml"), "--out", str(out), *options]
    with started(code, words, folder / "told") as child:
        deadline = time.monotonic() + 120
        while (rows := steps_of(out)[-1:]) == [] or (rows[0]["index"], rows[0]["step"]) < (stage, step):
            assert child.exitcode is None, "the run ended before it was killed"
            assert time.monotonic() < deadline, "the run did not get to the step"
            time.sleep(0.002)
        time.sleep(delay)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    return str(steps_of(out)[-1]["stage"])


def test_the_loss_of_every_stage_falls(undisturbed: dict[str, torch.Tensor], example: ModuleType, folder: Path) -> None:
    losses = example.stage_losses(folder / "whole", ends=4)
    assert list(losses) == STAGES
    assert {stage: last < first for stage, (first, last) in losses.items()} == dict.fromkeys(STAGES, True)
    assert [(row["index"], row["step"]) for row in steps_of(folder / "whole")] == [
        (index, step) for index, steps in enumerate(STEPS) for step in range(1, steps + 1)
    ]


@pytest.mark.slow
def test_three_kills_in_three_stages_end_in_the_same_weights_to_the_bit(
    undisturbed: dict[str, torch.Tensor], folder: Path
) -> None:
    rng, out, killed = random.Random(SEED), folder / "killed", []
    for stage in sorted(rng.sample(range(len(STAGES)), 3)):
        killed.append(start_and_kill(folder, out, stage, rng.randint(1, STEPS[stage] - 6), rng.uniform(0.0, 0.02)))
        assert states(out), "nothing to go on from: the first kill came before the first state"
    assert len(set(killed)) == 3
    again = train(folder, out)
    assert again.keys() == undisturbed.keys()
    assert [name for name in again if not torch.equal(again[name], undisturbed[name])] == []
    # the metrics read as if nothing had happened, too
    assert steps_of(out) == steps_of(folder / "whole")
