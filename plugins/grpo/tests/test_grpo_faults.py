"""Faults that were found by use: rewards that are all equal, answers that are all cut, rewards that break."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from andes_grpo.objective import advantages, equal
from andes_training.progress import Progress
from andes_training.recipe import load_recipe
from attrs import define

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import PluginBroken

FAULTS = Path(__file__).parent / "faults"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for name in ("flat.toml", "flat.jsonl"):
        shutil.copy(FAULTS / name, tmp_path)
    return tmp_path / "flat.toml"


@pytest.mark.parametrize("scale", ["group", "none"])
def test_t1_equal_rewards_give_exactly_no_advantage(scale: str) -> None:
    flat = torch.tensor([[0.2] * 8, [0.1 + 0.2] * 7 + [0.3], [1e6 / 3] * 8, [0.0] * 8])
    flat[1, 3] = torch.nextafter(flat[1, 3], torch.tensor(1.0))  # the residue of another order of additions
    assert equal(flat).all()
    assert not advantages(flat, scale=scale).any()
    assert not equal(torch.tensor([[1.0, 1.0 + 1e-5], [0.0, 1e-30]])).any()
    assert advantages(torch.tensor([[0.0, 1.0]]), scale=scale).abs().min() > 0.4


def test_t1_a_step_of_equal_rewards_moves_no_weight(recipe: Path, tmp_path: Path) -> None:
    loaded = load_recipe(recipe, ["stages.0.steps=1"])
    pipeline = Pipeline.from_plugins(**loaded.pipeline)
    before = {k: v.clone() for k, v in pipeline.model.state_dict().items()}
    pipeline.train(loaded, tmp_path / "out")
    assert all(torch.equal(before[k], v) for k, v in pipeline.model.state_dict().items())


@define(eq=False)
class Odd:
    """A reward that gives what it is told to."""

    gives: Any = None
    name: str = "odd"
    contract: ClassVar[str] = "1.1"

    @hookimpl
    def andes_rewards(self) -> list[Any]:
        return [self]

    def score(self, entry: Any, answer: str) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize("gives", [KeyError("truth"), None, math.nan, math.inf, "much"])
def test_t9_a_reward_that_breaks_is_named_with_file_and_line(recipe: Path, tmp_path: Path, gives: Any) -> None:
    loaded = load_recipe(recipe)
    plugins = [p for p in loaded.pipeline["plugins"] if "grpo" not in p and p != "verifiers"]
    plugins += [Odd(gives), {"grpo": {"rewards": {"odd": 1.0}, "max_answer": 4}}]
    with pytest.raises(PluginBroken, match=r"flat\.jsonl:\d+: reward 'odd'"):
        Pipeline.from_plugins(plugins).train(loaded, tmp_path / "out")


def test_t9_figures_of_answers_that_are_all_masked_are_true(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("max_answer = 4", 'max_answer = 4, overlong = "mask"'))
    loaded = load_recipe(recipe, ["stages.0.steps=1"])
    Pipeline.from_plugins(**loaded.pipeline).train(loaded, tmp_path / "out", progress=Progress(tmp_path / "out"))
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert row["tokens"] == 0
    assert row["truncated"] == 1.0
    assert row["length"] == 4.0
