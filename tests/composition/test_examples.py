"""Every example, started as a user would, does what it says; the shipped model scores what its card states."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from andes_sdk.testing.elsewhere import started

ROOT = Path(__file__).parents[2]
# a client needs a server: `plugins/serve/tests/test_serve_clients.py` runs that one
EXAMPLES = sorted(path.stem for path in ROOT.glob("examples/*.py") if path.stem != "serve_client")
TRAINING = [name for name in EXAMPLES if name.startswith("train_")]
LONG = {"train_chain": pytest.mark.slow, "deploy_dimensity": pytest.mark.slow}
"""Examples that take minutes; `test_chain.py` runs this one with fewer steps."""


SCRIPT = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def shown_by(script: str, folder: Path, *arguments: object) -> str:
    """What a script prints. It leaves with an error where a model did not learn what it should."""
    with started(SCRIPT, [ROOT / script, *arguments], folder / "told") as child:
        child.join(900)
    told, errors = ((folder / name).read_text() for name in ("told", "told.err"))
    assert child.exitcode == 0, told[-2000:] + errors[-4000:]
    return told


@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name, ())) for name in EXAMPLES])
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="an example writes Parquet")
    pytest.importorskip("easy_vqa", reason="pictures of an example")
    folder = tmp_path / "folder"
    folder.mkdir()
    shown = shown_by(f"examples/{name}.py", tmp_path, *[folder] if name in TRAINING or name == "shapes" else [])
    assert shown.strip()
    if name == "shapes":
        assert shown.splitlines() == [
            "boxes.parquet: 8 samples",
            "captions.jsonl: 8 samples",
            "captions.tar: 8 samples",
            "sums.jsonl: 3 samples",
        ]
    for metrics in tmp_path.rglob("metrics.jsonl"):
        steps = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert {"stage", "step", "loss"} <= steps[0].keys()
        if name in ("train_alignment", "train_joint", "train_multitask"):
            assert steps[-1]["loss"] < steps[0]["loss"]
            assert {step["stage"] for step in steps} == {name.removeprefix("train_")}
            assert (metrics.parent / "model" / "andes.json").is_file()
        if name == "train_distil" and metrics.parent.name == "distillation":
            assert steps[-1]["kl"] < 0.2 * steps[0]["kl"]
            assert steps[-1]["agreement"] > steps[0]["agreement"]
        if name == "train_grpo" and metrics.parent.name == "grpo":
            rewards = [step["reward"] for step in steps]
            assert sum(rewards[-8:]) > sum(rewards[:8])
            assert {"mismatch", "entropy", "clip_high", "flat", "truncated"} <= steps[-1].keys()
            assert "right answers:" in shown
    assert any(tmp_path.rglob("model.safetensors")) == (name in TRAINING)


def test_the_shipped_model_scores_what_its_card_states(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa", reason="the questions")
    shown = json.loads(shown_by("benchmarks/first_light.py", tmp_path, "--limit", 200, "--json"))
    assert shown["easy_vqa"] >= 0.98
    assert shown["digits"] >= 0.95
