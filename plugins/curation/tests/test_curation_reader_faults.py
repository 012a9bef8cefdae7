"""Faults that a reader found: samples that differ and were dropped, and boxes that nobody looked at."""

from __future__ import annotations

from typing import Any

import pytest
from andes_curation import Curation

BOX = "<|box_start|>{}<|box_end|>"


def pair(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "Where?"}], "chosen": chosen, "rejected": rejected}


def dropped(name: str, *samples: dict[str, Any]) -> list[bool]:
    one = next(f for f in Curation().andes_data_filters() if f.name == name)
    return [reason is not None for _, reason in one.apply(samples)]


@pytest.mark.parametrize(
    ("key", "box"), [("chosen", "(1,2),(3,4000)"), ("rejected", "(1,2),(3,4000)"), ("chosen", "(1")]
)
def test_a_box_outside_its_picture_is_found_in_both_answers_of_a_pair(key: str, box: str) -> None:
    good = BOX.format("(1,2),(3,4)")
    both = {"chosen": good, "rejected": good}
    talks = {name: [{"role": "assistant", "content": text}] for name, text in {**both, key: BOX.format(box)}.items()}
    samples = pair(**both), pair(**{**both, key: BOX.format(box)}), pair(**talks)
    assert dropped("boxes", *samples) == [False, True, True]
