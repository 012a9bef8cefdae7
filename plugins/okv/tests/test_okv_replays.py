"""Scores of replays equal the formulas, computed from one dense pass over context, request and context again."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from andes_okv.replaying import AGAIN, FIRST, LATER
from attrs import evolve
from torch.nn.functional import scaled_dot_product_attention

from andes_sdk import Pipeline
from andes_sdk.types import Inputs

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
CONTEXT = torch.arange(30, 70)


def pipeline(scorer: str, backend: str = "torch", **more: Any) -> Pipeline:
    okv = {"scorer": scorer, "rows": 12, "sinks": 2, "recent": 4, "slack": 0, "budget": "head", **more}
    extra = [{"numba": {"format": "f16", "activations": "exact", "kv": "f32"}}] if backend == "numba" else []
    return Pipeline.from_plugins([*PLUGINS, *extra, {"okv": okv}], backend=backend)


def dense(pipe: Pipeline, embeds: torch.Tensor) -> tuple[list[Any], list[torch.Tensor]]:
    """Per layer (q, k, v) of a dense causal pass, and what enters the layer."""
    seen: list[Any] = []
    entering: list[torch.Tensor] = []

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append((q[0], k[0], v[0]))
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True).transpose(1, 2)

    with torch.inference_mode():
        pipe.model.hidden_states(
            embeds, torch.arange(len(embeds)), attend, lambda layer, hidden: entering.append(hidden)
        )
    return seen, entering


def reference(pipe: Pipeline, *, plus: bool, sinks: int) -> dict[tuple[int, int], list[float]]:
    """(layer, KV head) -> score of each row of the context."""
    model, spec = pipe.model, pipe.model.text
    request = torch.tensor(pipe.tokenizer.encode(FIRST))
    with torch.inference_mode():
        embeds = model.embed(torch.cat([CONTEXT, request, CONTEXT]))
    seen, entering = dense(pipe, embeds)
    count, total, group = len(CONTEXT), len(embeds), spec.query_heads // spec.kv_heads
    names = {layer: name for name, (layer, role) in model.llm.linears().items() if role == "o"}
    found = {}
    for layer in range(spec.layers):
        q, k, v = seen[layer]
        weight = model.language_model.get_submodule(names[layer]).weight.detach()
        for head in range(spec.kv_heads):
            best = [0.0] * count
            for g in range(group):
                hq = head * group + g
                part = weight[:, hq * spec.head_dim : (hq + 1) * spec.head_dim]
                for j in range(count, total):
                    logits = [float(q[hq, j] @ k[head, i]) / math.sqrt(spec.head_dim) for i in range(j + 1)]
                    top = max(logits)
                    exp = [math.exp(x - top) for x in logits]
                    for i in range(count):
                        score = exp[i] / sum(exp)
                        if plus:
                            score *= float((part @ v[head, i]).norm()) / float(entering[layer][j].norm())
                        best[i] = max(best[i], score)
            found[layer, head] = best
    return found


@pytest.mark.parametrize(("scorer", "backend"), [("kvzip", "torch"), ("kvzip+", "torch"), ("kvzip+", "numba")])
def test_the_score_of_a_row_is_the_highest_of_a_replay(scorer: str, backend: str) -> None:
    pipe = pipeline(scorer, backend)
    session: Any = pipe.session()
    session.prefill(Inputs(CONTEXT))
    wanted = reference(pipe, plus=scorer == "kvzip+", sinks=2)
    past = session.keeping.keeper.past
    tolerance = 1e-4 if backend == "torch" else 2e-2
    assert set(past) == set(wanted)
    for place, scores in past.items():
        positions = session.heads(place[0])[2][place[1]].tolist()
        assert len(positions) == len(scores) == 12
        assert torch.allclose(scores, torch.tensor([wanted[place][p] for p in positions]), rtol=tolerance)
        # what stays beside sinks and recent rows is what scores most
        free = sorted(range(2, len(CONTEXT) - 4), key=lambda p: -wanted[place][p])[: 12 - 6]
        if backend == "torch":
            assert positions == sorted([0, 1, *free, *range(len(CONTEXT) - 4, len(CONTEXT))])


def test_a_later_chunk_is_asked_for_by_the_rows_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("kvzip", chunk=25)
    ran: list[torch.Tensor] = []
    session: Any = pipe.session()
    inner = session._replay
    monkeypatch.setattr(session, "_replay", lambda rows, look: ran.append(rows) or inner(rows, look))
    session.prefill(Inputs(CONTEXT))
    first, later = (pipe.tokenizer.encode(text) for text in (FIRST, LATER))
    ids = [[*first, *range(30, 55)], [*later, *range(55 - AGAIN, 55), *range(55, 70)]]
    with torch.inference_mode():
        wanted = [pipe.model.embed(torch.tensor(some)) for some in ids]
    assert [len(rows) for rows in ran] == [len(some) for some in ids]
    assert all(torch.equal(a, b) for a, b in zip(ran, wanted, strict=True))


def test_scores_of_earlier_chunks_stay_as_they_were() -> None:
    pipe = pipeline("kvzip", chunk=20)
    session: Any = pipe.session()
    kept = []
    for start in (0, 20):
        session.prefill(Inputs(CONTEXT[start : start + 20]))
        past = {place: scores.clone() for place, scores in session.keeping.keeper.past.items()}
        kept.append((past, {place: session.heads(place[0])[2][place[1]].clone() for place in past}))
    (before, old), (after, new) = kept
    assert before
    common = 0
    for place, scores in after.items():
        known = dict(zip(old[place].tolist(), before[place].tolist(), strict=True))
        for position, score in zip(new[place].tolist(), scores.tolist(), strict=True):
            if position in known:
                common += 1
                assert score == known[position]
    assert common


def test_a_replay_is_shorter_where_the_model_has_few_positions() -> None:
    pipe = pipeline("kvzip")
    chunks = [(a, b, len(r)) for a, b, r in _requests(pipe, 60).chunks(noise_rows(pipe, 100), 0)]
    assert chunks[0][0] == 0
    assert chunks[-1][1] == 100
    assert all(a[1] == b[0] for a, b in itertools.pairwise(chunks))
    assert all(n <= 60 for _, _, n in chunks)


def _requests(pipe: Pipeline, positions: int) -> Any:
    policy: Any = pipe.policy
    requests = policy.requests
    short = evolve(requests, first=requests.first[:5], later=requests.later[:5])
    return evolve(short, positions=positions)


def noise_rows(pipe: Pipeline, count: int) -> torch.Tensor:
    return torch.randn(count, pipe.model.text.width, generator=torch.Generator().manual_seed(1))
