"""The example of learning from rewards does what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_grpo.py"


def test_the_example_of_grpo_raises_the_share_of_right_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("train_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)  # leaves with an error where the share did not rise by a tenth
    assert "right answers:" in capsys.readouterr().out
    steps = [json.loads(line) for line in (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()]
    rewards = [step["reward"] for step in steps]
    assert sum(rewards[-8:]) > sum(rewards[:8])
    assert {"mismatch", "entropy", "clip_high", "flat", "truncated"} <= steps[-1].keys()
