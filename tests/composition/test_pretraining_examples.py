"""The pre-training examples do what they say, each with the plugin, the loop and a data format of its own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["shapes", "train_alignment", "train_joint", "train_multitask"])
def test_an_example_of_pre_training_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="an example writes Parquet")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(tmp_path)  # leaves with an error where the model did not learn what it should
    shown = capsys.readouterr().out
    if name == "shapes":
        assert shown.splitlines() == [
            "boxes.parquet: 8 samples",
            "captions.jsonl: 8 samples",
            "captions.tar: 8 samples",
            "sums.jsonl: 3 samples",
        ]
        return
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert {step["stage"] for step in steps} == {name.removeprefix("train_")}
    assert (tmp_path / "run" / "model" / "andes.json").is_file()
