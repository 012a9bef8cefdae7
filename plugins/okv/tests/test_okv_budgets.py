"""Budgets share rows out as they say; expectations are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from andes_okv.budgets import Budget, uniform

KINDS = ("head", "layer", "global", "threshold", "uniform")


def keep(budget: Budget, scores: Any, *, room: int, sinks: int = 0, recent: int = 1, image: Any = None) -> list[Any]:
    tensors = [[torch.tensor(s, dtype=torch.float32) for s in some] for some in scores]
    positions = [[torch.arange(len(s)) for s in some] for some in tensors]
    seen = len(tensors[0][0])
    pictures = torch.zeros(seen, dtype=torch.bool) if image is None else torch.tensor(image, dtype=torch.bool)
    kept = budget.keep(tensors, positions, pictures, room=room, sinks=sinks, recent=recent)
    return [[index.tolist() for index in some] for some in kept]


def counts(kept: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[len(index) for index in some] for some in kept]


WEAK, STRONG = [1, 2, 3, 4, 0], [10, 20, 30, 40, 0]


def test_each_head_keeps_its_own_best() -> None:
    assert keep(Budget(), [[WEAK, STRONG]], room=3) == [[[2, 3, 4], [2, 3, 4]]]


def test_sinks_and_recent_rows_stay_whatever_they_score() -> None:
    assert keep(Budget(), [[[0, 5, 9, 7, 1, 0]]], room=4, sinks=1, recent=2) == [[[0, 2, 4, 5]]]


def test_heads_of_a_layer_compete_and_layers_do_not() -> None:
    kept = keep(Budget(kind="layer"), [[WEAK, STRONG], [WEAK, WEAK]], room=3)
    assert kept[0] == [[4], [0, 1, 2, 3, 4]]
    assert counts(kept[1:])[0] == [3, 3]


def test_the_safeguard_of_a_head_comes_first() -> None:
    # half of an even split of 4 is 2 rows: the newest, and the best
    kept = keep(Budget(kind="layer", safeguard=0.5), [[WEAK, STRONG]], room=4)
    assert kept == [[[2, 3, 4], [0, 1, 2, 3, 4]]]
    assert counts(keep(Budget(kind="layer", safeguard=1.0), [[WEAK, STRONG]], room=4)) == [[4, 4]]


def test_all_heads_compete_under_the_global_budget() -> None:
    kept = keep(Budget(kind="global"), [[WEAK, WEAK], [WEAK, STRONG]], room=2)
    # eight rows in all: four newest, and the four best are those of the strong head
    assert kept == [[[4], [4]], [[4], [0, 1, 2, 3, 4]]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_floor_takes_nothing_from_competition_among_rows_of_one_kind(kind: str) -> None:
    scores = [[WEAK, WEAK], [WEAK, STRONG]]
    for image in ([0] * 5, [1] * 5):
        assert keep(Budget(kind=kind, floor=1.0), scores, room=3, image=image) == keep(
            Budget(kind=kind), scores, room=3, image=image
        )


def test_a_floor_counts_over_all_heads_that_compete() -> None:
    # two of five rows are pictures, so 4.8 of 12 rows; the weak heads have the worst pictures, and need not keep any
    image = [1, 1, 0, 0, 0]
    kept = keep(Budget(kind="global", floor=1.0), [[WEAK, WEAK], [STRONG, STRONG]], room=3, image=image)
    assert kept == [[[4], [4]], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]]
    alone = keep(Budget(kind="head", floor=1.0), [[WEAK, WEAK], [STRONG, STRONG]], room=3, image=image)
    assert alone == [[[1, 3, 4], [1, 3, 4]], [[1, 3, 4], [1, 3, 4]]]


def test_a_threshold_keeps_what_reaches_it_and_no_more_than_the_limit() -> None:
    budget = Budget(kind="threshold", threshold=3.0)
    assert keep(budget, [[WEAK, STRONG]], room=5) == [[[2, 3, 4], [0, 1, 2, 3, 4]]]
    # room for six in all: both newest, then the four best of those that reach it
    assert keep(budget, [[WEAK, STRONG]], room=3) == [[[4], [0, 1, 2, 3, 4]]]
    assert keep(Budget(kind="threshold", threshold=99.0), [[WEAK, STRONG]], room=5) == [[[4], [4]]]


def test_floors_and_safeguards_keep_nothing_below_a_threshold() -> None:
    budget = Budget(kind="threshold", threshold=3.0, safeguard=1.0, floor=1.0)
    assert keep(budget, [[WEAK, STRONG]], room=5, image=[1, 0, 1, 0, 1]) == [[[2, 3, 4], [0, 1, 2, 3, 4]]]


def test_uniform_keeps_the_same_rows_everywhere_by_rank() -> None:
    # ranks: rows 0 to 3 have 1 2 3 4 twice and 4 3 2 1 once; the scale of the third head does not matter
    heads = [[[1, 2, 3, 4, 0], [10, 20, 30, 40, 0]], [[900, 800, 700, 600, 0], [1, 2, 3, 4, 0]]]
    kept = keep(Budget(kind="uniform"), heads, room=3)
    assert kept == [[[2, 3, 4]] * 2] * 2
    with pytest.raises(ValueError, match="different rows"):
        uniform([[torch.zeros(2), torch.zeros(2)]], [[torch.tensor([0, 1]), torch.tensor([0, 2])]], 3)


@pytest.mark.parametrize("kind", ["head", "layer", "global"])
def test_neither_pictures_nor_text_starve(kind: str) -> None:
    image = [False] * 2 + [True] * 10 + [False] * 8
    scores = [100.0 if picture else 1.0 + i / 100 for i, picture in enumerate(image)]
    room = 8
    alone = keep(Budget(kind=kind), [[scores]], room=room, image=image)[0][0]
    assert sum(image[i] for i in alone) == 7  # all but the newest
    fair = keep(Budget(kind=kind, floor=0.5), [[scores]], room=room, image=image)[0][0]
    # half of an even split: 8 · 10/20 · 0.5 = 2 rows of text, the newest among them
    assert sum(not image[i] for i in fair) == 2
    assert len(fair) == room
    full = keep(Budget(kind=kind, floor=1.0), [[scores]], room=room, image=image)[0][0]
    assert sum(not image[i] for i in full) == 4
    other = keep(Budget(kind=kind, floor=0.5), [[[-s for s in scores]]], room=room, image=image)[0][0]
    assert sum(image[i] for i in other) == 2  # and the other way round


def test_floors_count_rows_of_the_session_not_those_that_are_left() -> None:
    # of 20 rows 10 were of a picture, 3 of them are left; a floor of 1 asks for 4 · 10/20 = 2 of them
    image = torch.tensor([True] * 10 + [False] * 10)
    positions = torch.tensor([0, 4, 9, *range(10, 20)])
    scores = torch.cat([torch.zeros(3), torch.ones(10)])
    (kept,) = Budget(floor=1.0).keep([[scores]], [[positions]], image, room=4, sinks=0, recent=1)
    assert sum(bool(image[positions[i]]) for i in kept[0].tolist()) == 2
    assert len(kept[0]) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("room", [1, 2, 3, 7, 40])
def test_no_budget_is_exceeded_or_wasted(kind: str, room: int) -> None:
    noise = torch.Generator().manual_seed(room)
    scores = [[torch.rand(20, generator=noise).tolist() for _ in range(2)] for _ in range(3)]
    budget = Budget(kind=kind, safeguard=0.2, floor=0.5, threshold=-1.0 if kind == "threshold" else None)
    kept = keep(budget, scores, room=room, recent=1, image=[i % 3 == 0 for i in range(20)])
    assert sum(map(sum, counts(kept))) == 6 * min(room, 20)
    if kind in ("head", "uniform"):
        assert {n for some in counts(kept) for n in some} == {min(room, 20)}
    for some in kept:
        for index in some:
            assert index == sorted(set(index))
            assert 19 in index


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_fill_the_budget_exactly(kind: str) -> None:
    budget = Budget(kind=kind, safeguard=0.2, floor=0.5, threshold=0.0 if kind == "threshold" else None)
    kept = keep(budget, [[[0.0] * 30] * 2] * 2, room=9, sinks=2, recent=3)
    assert sum(map(sum, counts(kept))) == 36
    assert all({0, 1, 27, 28, 29} <= set(index) for some in kept for index in some)
    if kind == "uniform":
        assert len({tuple(index) for some in kept for index in some}) == 1
