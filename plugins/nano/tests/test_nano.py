"""The shipped weights: small, what their card says, and named."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

import andes_nano
import pytest
from andes_evaluation.rules.places import hits, said_place

from andes_sdk import Pipeline
from andes_sdk.errors import AndesError
from andes_sdk.hookspecs import MODELS
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).resolve().parents[3]
NAMES = {point.name: point for point in entry_points(group=MODELS)}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("andes-nano")


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("andes_demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_distribution_is_small() -> None:
    assert sum(p.stat().st_size for p in andes_nano.HERE.rglob("*") if p.is_file()) <= 40_000_000


@pytest.mark.parametrize("name", sorted(n for n in NAMES if n.startswith("andes-nano")))
def test_a_name_opens_a_model_that_needs_no_training_plugin(name: str) -> None:
    opened = Pipeline.from_pretrained(name)
    assert set(opened.plan.names) == {"aimv2", "mlp", "qwen3"}
    assert opened.model.parameter_count() <= 12_000_000
    folder = Path(NAMES[name].load()())
    assert json.loads((folder / "andes.json").read_text())["dtype"] == "bfloat16"
    card = (folder / "README.md").read_text()
    assert f"{opened.model.parameter_count():,} parameters" in card
    for stage in json.loads((folder / "runs.json").read_text()):
        assert f"| {stage} |" in card


def test_a_folder_of_a_models_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "andes-nano").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AndesError, match=r"andes\.json"):
        Pipeline.from_pretrained("andes-nano")


def test_a_name_that_is_not_installed_is_told_beside_those_that_are() -> None:
    with pytest.raises(AndesError, match="andes-nano"):
        Pipeline.from_pretrained("andes-nan")


def test_it_finds_elements_of_bundled_screens(pipe: Pipeline, demo: ModuleType) -> None:
    wanted = demo.bundled()
    answers = [pipe.generate(one.messages, GenerationOptions(max_tokens=48)) for one in wanted]
    places = [said_place(a.text) for a in answers]
    right = sum(place is not None and hits(one.box, place) for one, place in zip(wanted, places, strict=True))
    assert right > len(wanted) / 3
