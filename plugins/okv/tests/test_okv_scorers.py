"""Every scorer gives what its formula says, computed here row by row in plain Python."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from andes_okv.heads import Head
from andes_okv.options import WINDOWS
from andes_okv.outputs import Outputs
from andes_okv.scorers import scorer_class
from andes_okv.scorers.learned import Learned
from andes_okv.scorers.restkv import pooled_by
from torch import nn

from andes_sdk.errors import ConfigError
from andes_sdk.types import Layer, TextSpec

D, GROUP, WIDTH = 4, 2, 12
GONE = (3, 4, 9)
"""Positions that an earlier eviction took."""


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Model:
    """One layer, two KV heads of two query heads each."""

    def __init__(self) -> None:
        self.text = TextSpec(
            width=WIDTH, vocab_size=9, layers=1, query_heads=4, kv_heads=2, head_dim=D, max_positions=99
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.language_model = nn.Module()
        self.language_model.o = nn.Linear(4 * D, WIDTH, bias=False)
        with torch.no_grad():
            self.language_model.o.weight.copy_(noise(7, WIDTH, 4 * D))
        self.llm: Any = SimpleNamespace(linears=lambda: {"o": (0, "o")})

    def projection(self, head: int, g: int) -> torch.Tensor:
        """(D, d) of one query head."""
        start = (head * GROUP + g) * D
        return self.language_model.o.weight[:, start : start + D].detach()


def head(window: int, *, seen: int = 30, index: int = 1, since: int = 0, past: Any = None, room: int = 8) -> Head:
    places = torch.tensor([p for p in range(seen) if p not in GONE])
    count = len(places)
    layer = Layer(
        index=0, keys=[noise(10 + h, count, D) for h in range(2)], values=[noise(20 + h, count, D) for h in range(2)],
        positions=[places, places], queries=noise(30, 4, window, D), image=torch.zeros(seen, dtype=torch.bool),
    )  # fmt: skip
    return Head(
        layer=layer, index=index, queries=layer.queries[index * GROUP : (index + 1) * GROUP],
        at=torch.arange(seen - window, seen), seen=seen, since=since, past=past, room=room, outputs=Outputs(Model()),
    )  # fmt: skip


def softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    exp = {i: math.exp(x - top) for i, x in logits.items()}
    return {i: x / sum(exp.values()) for i, x in exp.items()}


def attention(one: Head, g: int, w: int) -> list[float]:
    """Of one query, over all rows; 0 for rows that stand after it."""
    keys, places = one.layer.keys[one.index], one.layer.positions[one.index].tolist()
    query, at = one.queries[g, w], int(one.at[w])
    logits = {i: float(query @ keys[i]) / math.sqrt(D) for i, p in enumerate(places) if p <= at}
    share = softmax(logits)
    return [share.get(i, 0.0) for i in range(len(places))]


def outside(one: Head) -> list[int]:
    """Rows before the window."""
    return [i for i, p in enumerate(one.layer.positions[one.index].tolist()) if p < int(one.at[0])]


def smoothed(values: list[float], width: int, how: Any) -> list[float]:
    half = width // 2
    padded = [0.0 if how is mean else -math.inf] * half
    row = [*padded, *values, *padded]
    return [how(row[i : i + width]) for i in range(len(values))]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def snap(one: Head, window: int) -> list[float]:
    rows = outside(one)
    per_query_head = []
    for g in range(GROUP):
        shares = [attention(one, g, w) for w in range(window)]
        per_query_head.append(smoothed([mean([s[i] for s in shares]) for i in rows], 5, mean))
    return [mean([x[i] for x in per_query_head]) for i in range(len(rows))]


def compare(found: torch.Tensor, wanted: list[float], one: Head, tolerance: float = 1e-5) -> None:
    """The rows before the window are as wanted, those inside are above all of them."""
    rows = outside(one)
    assert found.shape == (len(one.layer.positions[one.index]),)
    assert torch.allclose(found[rows], torch.tensor(wanted), rtol=tolerance, atol=1e-7)
    inside = [i for i in range(len(found)) if i not in rows]
    assert not inside or float(found[inside].min()) > float(found[rows].max())


def test_streaming_prefers_later_rows() -> None:
    one = head(0)
    assert scorer_class("streaming")()(one).tolist() == [p for p in range(30) if p not in GONE]


def test_keynorm_is_minus_the_length_of_the_key() -> None:
    one = head(0)
    found = scorer_class("keynorm")()(one)
    wanted = [-math.sqrt(sum(float(x) ** 2 for x in key)) for key in one.layer.keys[1]]
    assert torch.allclose(found, torch.tensor(wanted))


@pytest.mark.parametrize("index", [0, 1])
def test_snapkv_averages_the_windows_attention(index: int) -> None:
    one = head(6, index=index)
    compare(scorer_class("snapkv")(window=6)(one), snap(one, 6), one)


def test_h2o_adds_the_attention_of_every_query_since_it_was_asked() -> None:
    past = torch.arange(20).float()
    one = head(8, since=24, past=past)
    found = scorer_class("h2o")()(one)
    places = one.layer.positions[1].tolist()
    wanted = [float(past[i]) if i < len(past) else 0.0 for i in range(len(places))]
    for w, at in enumerate(range(22, 30)):
        if at < 24:  # this query was counted before
            continue
        for g in range(GROUP):
            for i, share in enumerate(attention(one, g, w)):
                wanted[i] += share / GROUP
    assert torch.allclose(found, torch.tensor(wanted), rtol=1e-5)


def test_h2o_in_two_parts_is_h2o_at_once() -> None:
    scorer = scorer_class("h2o")()
    whole = head(30)
    at_once = scorer(whole)
    layer = whole.layer
    first = [i for i, p in enumerate(layer.positions[1].tolist()) if p < 20]
    cut = Layer(
        index=0, keys=[k[first] for k in layer.keys], values=[v[first] for v in layer.values],
        positions=[p[first] for p in layer.positions], queries=layer.queries[:, :20], image=layer.image[:20],
    )  # fmt: skip
    start = Head(layer=cut, index=1, queries=whole.queries[:, :20], at=torch.arange(20), seen=20)
    rest = Head(
        layer=layer, index=1, queries=whole.queries[:, 15:], at=torch.arange(15, 30), seen=30, since=20,
        past=scorer(start),
    )  # fmt: skip
    assert torch.allclose(scorer(rest), at_once, rtol=1e-5)


def test_critical_gives_half_the_room_to_attention_and_weighs_the_rest_by_its_output() -> None:
    one = head(6, room=12)
    found = scorer_class("critical")(window=6)(one)
    rows, plain, model = outside(one), snap(one, 6), Model()
    values = one.layer.values[1]
    lengths = [mean([float((model.projection(1, g) @ values[i]).abs().sum()) for g in range(GROUP)]) for i in rows]
    weighed = [(a + 1e-4) * x for a, x in zip(plain, lengths, strict=True)]
    # room for 6 by attention: the 6 rows of the window come first of all, so nothing before it is chosen by attention
    compare(found, weighed, one)
    wide = head(6, room=20)
    by_attention = sorted(range(len(rows)), key=lambda i: -plain[i])[:4]  # 10 by attention, 6 are the window's
    again = scorer_class("critical")(window=6)(wide)[rows]
    best = again.argsort(descending=True).tolist()
    assert best[:4] == by_attention
    others = [i for i in range(len(rows)) if i not in by_attention]
    assert best[4:] == sorted(others, key=lambda i: -weighed[i])


def test_dropkv_is_the_squared_change_of_the_output_without_the_row() -> None:
    one = head(5)
    values = one.layer.values[1]
    wanted = []
    for i in outside(one):
        total = []
        for g in range(GROUP):
            moved = 0.0
            for w in range(5):
                p = attention(one, g, w)
                full = sum((p[j] * values[j] for j in range(len(p))), torch.zeros(D))
                without = {j: x for j, x in enumerate(p) if j != i}
                scale = sum(without.values())
                left = sum((x / scale * values[j] for j, x in without.items()), torch.zeros(D))
                moved += float((left - full).square().sum())  # leave-one-out itself, no closed form
            total.append(moved)
        wanted.append(mean(total))
    compare(scorer_class("dropkv")(window=5)(one), wanted, one, 1e-3)


def test_restkv_averages_over_the_window_and_projects_the_change() -> None:
    one, model = head(6), Model()
    rows, values = outside(one), one.layer.values[1]
    per_query_head = []
    for g in range(GROUP):
        p = [attention(one, g, 0)[i] for i in rows]
        for w in range(1, 6):
            p = [0.3 * attention(one, g, w)[i] + 0.7 * old for i, old in zip(rows, p, strict=True)]
        output = sum((x * values[i] for x, i in zip(p, rows, strict=True)), torch.zeros(D))
        worth = [
            x / (1 - x) * float((model.projection(1, g) @ (output - values[i])).norm())
            for x, i in zip(p, rows, strict=True)
        ]
        row = [worth[0]] * 2 + worth + [worth[-1]] * 2  # few rows: five neighbours, ends repeated
        per_query_head.append([mean(row[i : i + 5]) for i in range(len(worth))])
    wanted = [mean([x[i] for x in per_query_head]) for i in range(len(rows))]
    compare(scorer_class("restkv")(window=6)(one), wanted, one, 1e-4)


def test_restkv_pools_wider_and_shifted_where_attention_moved() -> None:
    scores = noise(3, 40)
    assert torch.allclose(pooled_by(scores, 5, 1999.0)[2:-2], scores.unfold(0, 5, 1).mean(dim=1))
    # 6 500 rows: 2·3 + 1 = 7 neighbours, three rows later; an output is the mean of what stood at −3 + 3 … 3 + 3
    wide = pooled_by(scores, 5, 6500.0)
    assert torch.allclose(wide[10], scores[10:17].mean())
    back = pooled_by(scores, 5, -6500.0)
    assert torch.allclose(back[10], scores[4:11].mean())


def test_rkv_subtracts_redundancy_from_importance() -> None:
    one = head(8)
    keys = one.layer.keys[1]
    keys[12] = keys[5] * 1.5  # one pair that is redundant whatever the noise
    count, rows = len(keys), outside(one)
    cosine = [
        [float(keys[i] @ keys[j] / (keys[i].norm() * keys[j].norm())) if i != j else 0.0 for j in range(count)]
        for i in range(count)
    ]
    for row in cosine:
        alike = [j for j, x in enumerate(row) if x > 0.5]
        if alike:
            row[alike[-1]] = 0.0
    total = softmax({j: mean([cosine[i][j] for i in range(count)]) for j in range(count)})
    importance = []
    for w in range(8):
        logits = {i: max(float(one.queries[g, w] @ keys[i]) / math.sqrt(D) for g in range(GROUP)) for i in rows}
        share = softmax(logits)
        importance.append([share[i] for i in rows])
    pooled = smoothed([mean([x[i] for x in importance]) for i in range(len(rows))], 7, max)
    wanted = [0.07 * a - 0.93 * total[i] for a, i in zip(pooled, rows, strict=True)]
    compare(scorer_class("rkv")(window=8)(one), wanted, one, 1e-4)


def test_learned_scores_are_linear_in_the_normalised_input() -> None:
    weight, bias, hidden = noise(1, 2, WIDTH), noise(2, 2), noise(3, 5, WIDTH) * 40
    found = Learned(maps=[(weight, bias)]).made(0, hidden)
    assert found is not None
    for h in range(2):
        for t in range(5):
            size = math.sqrt(sum(float(x) ** 2 for x in hidden[t]) / WIDTH)
            wanted = float(bias[h]) + sum(float(weight[h, i] * hidden[t, i]) / size for i in range(WIDTH))
            assert float(found[h, t]) == pytest.approx(wanted, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", sorted(set(WINDOWS) - {"learned", "kvzip", "kvzip+"}))
@pytest.mark.parametrize("seen", [1, 2, 30])
def test_every_scorer_gives_finite_numbers_of_every_length(name: str, seen: int) -> None:
    window = min(seen, WINDOWS[name] or (8 if name == "h2o" else 0))
    one = head(window, seen=seen, room=4)
    found = scorer_class(name)(window=window)(one)
    assert found.shape == (seen - sum(g < seen for g in GONE),)
    assert found.dtype is torch.float32
    assert found.isfinite().all()


@pytest.mark.parametrize("name", sorted(set(WINDOWS) - {"learned", "kvzip", "kvzip+"}))
def test_identical_rows_score_finitely_in_every_scorer(name: str) -> None:
    one = head(WINDOWS[name] or 8, room=8)
    for part in (one.layer.keys[1], one.layer.values[1]):
        part.copy_(part[:1].expand_as(part).clone())
    assert scorer_class(name)(window=8)(one).isfinite().all()


def test_a_model_that_names_no_output_projection_is_refused() -> None:
    model = Model()
    model.llm = SimpleNamespace(linears=lambda: {"up": (0, "up")})
    with pytest.raises(ConfigError, match="output projection") as caught:
        Outputs(model)  # type: ignore[arg-type]
    assert "layers [0]" in caught.value.why
    assert "snapkv" in caught.value.fix


def test_a_projection_that_is_no_plain_linear_layer_is_asked_what_it_does() -> None:
    model = Model()
    plain, rows = Outputs(model), noise(5, 6, D)  # type: ignore[arg-type]

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Linear) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 3.0  # a bias moves all rows alike

    wrapped = Model()
    wrapped.language_model.o = Wrapped(wrapped.language_model.o)
    other = Outputs(wrapped)  # type: ignore[arg-type]
    for kind in ("euclidean", "absolute"):
        assert torch.allclose(getattr(other, kind)(0, 1, rows), getattr(plain, kind)(0, 1, rows), atol=1e-4)
    lengths = [[float((model.projection(1, g) @ row).norm()) for row in rows] for g in range(GROUP)]
    assert torch.allclose(plain.euclidean(0, 1, rows), torch.tensor(lengths), rtol=1e-4)
