"""The small model of `examples/retrieval` finds what it is asked for, behind all rows and behind a quarter of them."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from andes_sdk import Pipeline
from andes_sdk.types import Inputs

pytest.importorskip("andes_okv", reason="pip install andes-okv")
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples" / "retrieval" / "model"


def asked(task: str, *plugins: Any) -> tuple[float, int]:
    """Share of right answers about two texts of some 900 tokens, and rows at the end."""
    from kv_texts import fitting

    pipe = Pipeline.from_pretrained(MODEL, plugins=list(plugins))
    rng, right, held = random.Random(5), [], 0
    for _ in range(2):
        case = fitting(pipe, rng, 900, 15, task)
        session: Any = pipe.session()
        session.prefill(Inputs(ids=torch.tensor(case.split(pipe, case.questions[0])[0])))
        held += sum(sum(layer) for layer in session.stats.rows)
        for question in case.questions:
            wanted = pipe.tokenizer.encode(question.answer)
            logits = session.extend([*case.split(pipe, question)[1], *wanted])[0]
            session.rollback()
            right.append(logits[-1 - len(wanted) : -1].argmax(dim=-1).tolist() == wanted)
    return sum(right) / len(right), held


@pytest.mark.parametrize("task", ["keys", "tracking"])
def test_a_quarter_of_the_rows_is_enough_to_find_nearly_all(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    weights = str(MODEL.parent / "scorer.safetensors")
    whole, rows = asked(task)
    kept, fewer = asked(task, {"okv": {"keep": 0.25, "least": 200, "scorer": "learned", "weights": weights}})
    recent, same = asked(task, {"okv": {"keep": 0.25, "least": 200, "scorer": "streaming"}})
    assert whole >= 0.9
    assert kept >= whole - 0.1
    assert recent < whole - 0.4
    assert max(fewer, same) < 0.3 * rows
