"""What a run shows before it starts and after it ended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from andes_training.outlook import memory_of
from andes_training.recipe import LoraRecipe, StageRecipe
from andes_training.report import write_report
from typer.testing import CliRunner

from andes_sdk import Pipeline
from andes_sdk.cli import app
from andes_sdk.errors import TrainingError
from andes_sdk.runtime.attention import PackedAttention, Segment


def metrics(folder: Path, steps: int = 60) -> None:
    rows = [
        {"index": i, "stage": stage, "step": s, "loss": 4.0 / s, "rate_factor": 1.0, "gradient_norm": 0.5,
         "accuracy": 0.25, "tokens": 100, "samples": 2, "seconds": 0.5}
        for i, stage in enumerate(("a<b", "sft"))
        for s in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"index": 1, "sta')


def test_a_report_tells_of_every_stage_and_draws_its_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the curves")
    metrics(tmp_path)
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    text = Path(json.loads(done.output)["report"]).read_text(encoding="utf-8")
    assert "a<b" not in text
    # 60 steps of 100 tokens in half a second each
    assert "<td>1. a&lt;b</td><td>60</td><td>4.0000</td><td>0.0667</td><td>6,000</td><td>200</td><td>0.5</td>" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 2 * 5  # four curves and the stage's own figure
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert [t in text for t in ("loss", "gradient norm", "accuracy", "tokens per second")] == [True] * 4
    before = text
    assert write_report(tmp_path).read_text(encoding="utf-8") == before


def test_a_folder_without_metrics_has_no_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the curves")
    with pytest.raises(TrainingError, match="no metrics"):
        write_report(tmp_path)


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, "sft"])


def test_the_estimate_of_activations_is_what_autograd_keeps(pipeline: Pipeline) -> None:
    stage = StageRecipe(stage="sft", data=[], steps=1, max_tokens=96, max_patches=64)
    model = pipeline.model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        images = model.mlp(model.vision_encoder(torch.randn(64, 3 * 14**2), [(8, 8)]))
        ids = torch.full((96,), 7)
        ids[:16] = pipeline.tokenizer.placeholder("image")
        model.hidden_states(model.embed(ids, {"image": images}), torch.arange(96), PackedAttention([Segment(96)]))
    real = sum(t.untyped_storage().nbytes() for t in kept.values())
    memory = memory_of(pipeline.meta_model(), stage, "no")
    # the real pack also keeps which rows are image rows
    assert memory["activations"] == pytest.approx(real, rel=0.02)
    numbers = pipeline.model.parameter_count()
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (4 * numbers, 4 * numbers, 8 * numbers)


def test_what_saves_memory_shows_in_the_estimate(pipeline: Pipeline) -> None:
    def estimate(**options) -> dict[str, int]:
        stage = StageRecipe(stage="sft", data=[], steps=1, max_tokens=256, max_patches=256, **options)
        return memory_of(pipeline.meta_model(), stage, options.pop("precision", "no"))

    plain, recomputed, averaged = estimate(), estimate(recompute=True), estimate(ema=0.9)
    assert recomputed["activations"] < 0.6 * plain["activations"]
    assert averaged["average"] == plain["weights"]


def test_a_dry_run_counts_what_an_adapter_trains(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="LoRA is made by peft")
    (tmp_path / "data.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    (tmp_path / "recipe.toml").write_text(
        'name = "x"\n[pipeline]\nplugins = '
        '[{ aimv2 = { preset = "tiny" } }, "mlp", { qwen3 = { preset = "tiny" } }, "sft"]\n'
        '[[stages]]\nstage = "sft"\nsteps = 3\naccumulate = 2\nmax_tokens = 64\ndata = [{ path = "data.jsonl" }]\n'
        '[stages.lora]\nrank = 4\ntargets = ["projector"]\n'
    )
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.toml"), "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    stage = json.loads(done.output)["stages"][0]
    assert stage["tokens"] == 3 * 2 * 64
    # tiny: 4 * 32 = 128 features to 128, then to 48; A and B of rank 4 each
    assert stage["trainable"] == {"vision_encoder": 0, "mlp": 4 * (128 + 128) + 4 * (128 + 48), "language_model": 0}
    assert stage["memory_bytes"]["optimizer"] == 2 * 4 * stage["trainable"]["mlp"]
    assert LoraRecipe(rank=4).targets == ["attention", "mlp"]
