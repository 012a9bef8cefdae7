"""The published conformance kit on this plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from andes_speculative.heads import base_of, save_head
from andes_speculative.stage import BlockStage, Eagle3Stage

from andes_sdk import Pipeline
from andes_sdk.testing import conformance, run_checks
from andes_sdk.testing.weights import randomised

test_conformance = conformance("speculative")
test_conformance_of_heads = conformance("draft-heads")
test_conformance_of_everything_that_is_guessed = conformance("speculative", options={"adapt": False, "rows": 12})


ANOTHER = "general: what one pipeline computes does not depend on another"
COMPANIONS: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]


@pytest.mark.parametrize("drafter", ["model", "eagle3", "block"])
def test_conformance_of_drafters_that_read_files(drafter: str, tmp_path: Path) -> None:
    """The same kit, around a file that is made here."""
    pipe = Pipeline.from_plugins(COMPANIONS)
    options: dict[str, Any] = {"drafter": drafter, "adapt": False, "depth": 3, "width": 2}
    if drafter == "model":
        options["model"] = str(pipe.save_pretrained(tmp_path / "small"))
    else:
        stage = (Eagle3Stage if drafter == "eagle3" else BlockStage)(rate=0.1, vocabulary=128)
        head = stage.new_head(pipe.model.text)
        save_head(randomised(head), tmp_path / "head", base_of(pipe.model))
        options["head"] = str(tmp_path / "head")
    results = run_checks("speculative", options=options, companions=COMPANIONS)
    failed = {r.id: r.reason for r in results if r.status == "failed"}
    if drafter != "model":  # this check changes the weights first, and a head works for its own alone
        assert "train one with `andes draft train` for this model" in failed.pop(ANOTHER)
    assert failed == {}
    assert sum(r.status == "passed" and r.kind == "decoder" for r in results) >= 8
