"""A model beside variants of itself, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from andes_evaluation.device import Variant, measure
from PIL import Image
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import ConfigError, InputError

MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


def test_a_variant_is_a_name_and_options_of_the_command() -> None:
    variant = Variant.parse("w4: model='a b.andes' backend=numba option=okv.keep=0.25")
    assert variant.name == "w4"
    assert variant.arguments("base") == ["a b.andes", "--backend", "numba", "--option", "okv.keep=0.25"]
    assert Variant.parse("same:").arguments("m") == ["m"]


@pytest.mark.parametrize(
    "text", ["w4", "base: backend=numba", "../x: dtype=float16", "a: speed=2", "a: dtype", "a: 'x"]
)
def test_what_is_no_variant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Variant.parse(text)


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Path, list[str]]:
    """A model, and options of the command that name two questions."""
    model = Pipeline.from_plugins(MODEL, image={"min_size": 28}).save_pretrained(tmp_path / "model")
    Image.new("RGB", (56, 28), "teal").save(tmp_path / "a.png")
    row = {"image": "a.png", "width": 56, "height": 28, "instruction": "open it", "box": [0, 0, 28, 14]}
    lines = (json.dumps({**row, "id": str(i), "instruction": f"open {i}"}) for i in range(2))
    (tmp_path / "grounding.jsonl").write_text("\n".join(lines) + "\n")
    return model, ["--data", str(tmp_path), "--max-tokens", "4", "--image-size", "56"]


def test_variants_stand_beside_the_base(tmp_path: Path, prepared: tuple[Path, list[str]]) -> None:
    model, common = prepared
    arguments = ["eval", "device", str(model), "andesui-grounding", *common, "--variant", "half: dtype=bfloat16"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out"), "--json"])
    assert result.exit_code == 0, result.output + result.stderr
    variants = json.loads(result.stdout)["variants"]
    base, half = variants["base"], variants["half"]
    assert (base["rouge_l"], base["edit"], base["same"], base["against_base"]) == (1.0, 0.0, 1.0, {})
    assert half["changes"] == ["dtype=bfloat16"]
    assert half["against_base"]["andesui-grounding"]["n"] == 2
    assert half["kv_bytes"] == base["kv_bytes"] / 2  # two bytes a number in place of four
    assert 0 < half["rouge_l"] <= 1
    assert base["memory"] > 50 * 2**20
    assert base["tokens_per_second"] > 0


@pytest.mark.slow
def test_what_was_measured_stays_and_a_variant_that_cannot_run_is_named(
    tmp_path: Path, prepared: tuple[Path, list[str]]
) -> None:
    model, common = prepared
    one, again = (
        measure(str(model), ["andesui-grounding"], [], tmp_path / "out", [*common, "--together", "1", "--seed", "0"])
        for _ in range(2)
    )
    assert again["base"].memory == one["base"].memory  # its answers were there: nothing ran anew
    with pytest.raises(InputError, match="the variant cannot run") as caught:
        measure(str(tmp_path / "gone"), ["andesui-grounding"], [], tmp_path / "other", common)
    assert "gone" in caught.value.why
    with pytest.raises(ConfigError, match="two variants have one name"):
        measure(str(model), [], [Variant("a"), Variant("a")], tmp_path / "other")
