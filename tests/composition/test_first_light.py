"""The shipped model: small enough, made by the recipe beside it, and right about pictures it has never seen."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from andes_training.recipe import load_recipe

from andes_sdk import Pipeline
from andes_sdk.config import CONVERTER

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "first_light"
MODEL = FOLDER / "model"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained(MODEL, dtype="float32")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("andes_first_light_benchmark", ROOT / "benchmarks" / "first_light.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_small(pipeline: Pipeline) -> None:
    assert pipeline.model.parameter_count() <= 6_000_000
    assert sum(p.stat().st_size for p in MODEL.rglob("*")) <= 12_000_000


def test_its_plan_is_the_recipes(pipeline: Pipeline) -> None:
    recipe = Pipeline.from_plugins(**load_recipe(FOLDER / "recipe.toml").pipeline).plan
    saved = {p.name: CONVERTER.unstructure(p.options) for p in pipeline.plan.plugins}
    wanted = {p.name: {k: v for k, v in p.options.items() if k != "tokenizer"} for p in recipe.plugins}
    assert saved == wanted
    assert pipeline.plan.image == recipe.image


def test_it_answers_held_out_questions(pipeline: Pipeline, benchmark: ModuleType) -> None:
    questions = [(path, q, a) for path, pairs in benchmark.easy_vqa_questions("test") for q, a in pairs]
    share, kinds = benchmark.score(pipeline, benchmark.spread(questions, 160), "easy-vqa")
    assert share >= 0.92
    assert set(kinds) == {"colour", "shape", "yes/no"}


def test_it_reads_held_out_digits(pipeline: Pipeline, benchmark: ModuleType) -> None:
    items = [(image, benchmark.DIGIT_QUESTIONS[0], truth) for image, truth in benchmark.digits("test")]
    assert len(items) == 500
    share, _ = benchmark.score(pipeline, items[:100], "digits")
    assert share >= 0.9


def test_training_never_saw_a_held_out_digit(benchmark: ModuleType) -> None:
    held_out = {image.tobytes() for image, _ in benchmark.digits("test")}
    assert len(list(benchmark.digits("train"))) == 1297
    assert not held_out & {image.tobytes() for image, _ in benchmark.digits("train")}


def test_the_published_results_are_of_this_model(pipeline: Pipeline) -> None:
    results = json.loads((ROOT / "docs" / "results" / "first_light.json").read_text())
    assert results["parameters"] == pipeline.model.parameter_count()
    assert (results["questions"], results["digits_held_out"]) == (9673, 500)
    card = (MODEL / "README.md").read_text()
    assert f"{results['easy_vqa']:.1%}" in card
    assert f"{results['digits']:.1%}" in (ROOT / "README.md").read_text()
