"""Faults that a reader found: right answers that were refused, and wrong ones that were taken."""

from __future__ import annotations

from typing import Any

import pytest
from andes_verifiers import Verifiers

from andes_sdk.errors import InputError


def score(name: str, sample: dict[str, Any], answer: str, **options: Any) -> float:
    rewards = {r.name: r for r in Verifiers(**options).andes_rewards()}
    return rewards[name].score(sample, answer)


@pytest.mark.parametrize("think", ["false", "no", "true", "", 0, 1, [], {}])
def test_format_refuses_a_think_that_is_no_truth_value(think: object) -> None:
    with pytest.raises(InputError, match="`think` is"):
        score("format", {"think": think}, "4")


def test_format_takes_null_for_its_default() -> None:
    assert score("format", {"think": None}, "<think>so</think>4") == score("format", {}, "<think>so</think>4") == 1.0
    assert score("format", {"think": None}, "4") == score("format", {}, "4") == 0.0
