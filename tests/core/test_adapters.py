"""Adapters in sessions: added row by row, on weights that stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from torch import nn

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, DuplicateName, SessionError
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.types import Adapter, Inputs, LowRank, Work

MODEL = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
PROMPT = torch.tensor([5, 9, 70, 33, 120, 44, 9, 8])


def adapter(pipe: Pipeline, name: str, seed: int, rank: int, ends: tuple[str, ...]) -> Adapter:
    """Matrices that do something, for each linear layer whose name ends so."""
    random, layers = torch.Generator().manual_seed(seed), {}
    for path, layer in pipe.model.language_model.named_modules():
        if isinstance(layer, nn.Linear) and path.endswith(ends):
            a = torch.randn(rank, layer.in_features, generator=random) * 0.3
            b = torch.randn(layer.out_features, rank, generator=random) * 0.3
            layers[path] = LowRank(a=a, b=b, scale=3.0)
    return Adapter(name=name, layers=layers)


@pytest.fixture
def pipeline() -> Pipeline:
    pipe = Pipeline.from_plugins(MODEL, seed=1)
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    pipe.compiled.add_adapter(adapter(pipe, "plain", 0, 4, every))
    pipe.compiled.add_adapter(adapter(pipe, "rs", 1, 2, ("q_proj", "down_proj")))
    return pipe


def test_the_base_stays_what_it_was(pipeline: Pipeline) -> None:
    clean = Pipeline.from_plugins(MODEL, seed=1)
    session = pipeline.session()
    session.adapter = "plain"
    session.prefill(Inputs(PROMPT))
    state, wanted = pipeline.model.state_dict(), clean.model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[n], wanted[n]) for n in wanted)
    assert torch.equal(pipeline.session().prefill(Inputs(PROMPT)), clean.session().prefill(Inputs(PROMPT)))


def test_sessions_with_different_adapters_share_a_pass(pipeline: Pipeline) -> None:
    names, tokens = [None, "plain", "rs", "plain"], [[3], [4, 5, 6], [7, 8], [9]]
    alone, together = ([pipeline.session() for _ in names] for _ in range(2))
    for sessions in (alone, together):
        for session, name in zip(sessions, names, strict=True):
            session.adapter = name
            session.prefill(Inputs(PROMPT))
    wanted = [s.extend(t) for s, t in zip(alone, tokens, strict=True)]
    rows = pipeline.compiled.step([Work(session=s, tokens=t) for s, t in zip(together, tokens, strict=True)])
    for pair, other in zip([(r.logits, r.hidden) for r in rows], wanted, strict=True):
        # other shapes of the same product add in another order
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(pair, other, strict=True))


def test_a_session_may_change_its_adapter_between_rows(pipeline: Pipeline) -> None:
    session, plain = pipeline.session(), pipeline.session()
    session.adapter = "plain"
    for one in (session, plain):
        one.prefill(Inputs(PROMPT))
    session.adapter = None
    # the rows stay those of the adapter, so this is neither the base nor the adapter alone
    assert not torch.allclose(session.extend([3])[0], plain.extend([3])[0], atol=1e-3)


def test_answers_name_their_adapter(pipeline: Pipeline) -> None:
    texts = {
        name: pipeline.generate("hello", GenerationOptions(max_tokens=6, adapter=name)).tokens
        for name in (None, "plain", "rs")
    }
    assert len(set(texts.values())) == 3
    assert pipeline.chat("hello", adapter="rs", max_tokens=6) is not None


def test_an_unknown_name_is_refused_with_those_that_exist(pipeline: Pipeline) -> None:
    with pytest.raises(SessionError, match="no adapter 'plane'") as caught:
        pipeline.session().adapter = "plane"
    assert "plain" in caught.value.fix
    with pytest.raises(SessionError, match="add_adapter"):
        Pipeline.from_plugins(MODEL).session().adapter = "plain"


def test_an_adapter_made_by_hand_that_does_not_fit_is_refused(pipeline: Pipeline) -> None:
    def pair(a: tuple[int, int], b: tuple[int, int]) -> LowRank:
        return LowRank(a=torch.zeros(a), b=torch.zeros(b), scale=1.0)

    layers = {
        "model.layers.0.self_attn.q_proj": pair((2, 47), (64, 3)),
        "model.layers.1.mlp.up_proj": pair((2, 48), (96, 2)),
        "lm_head": pair((2, 48), (512, 2)),
    }
    with pytest.raises(ConfigError, match="does not fit") as caught:
        pipeline.compiled.add_adapter(Adapter(name="odd", layers=layers))
    for words in ("q_proj: a is [2, 47], not [2, 48]", "q_proj: b is [64, 3], not [64, 2]", "lm_head: no linear layer"):
        assert words in caught.value.why
    assert "up_proj" not in caught.value.why
    with pytest.raises(SessionError, match="no adapter 'odd'"):
        pipeline.session().adapter = "odd"


def test_of_many_layers_that_do_not_fit_twenty_are_named_and_the_others_counted(pipeline: Pipeline) -> None:
    pair = LowRank(a=torch.zeros(2, 48), b=torch.zeros(48, 2), scale=1.0)
    for count, end in ((20, "layers.19: no linear layer that can be adapted"), (23, "\n  and 3 more")):
        adapter = Adapter(name="odd", layers={f"layers.{n}": pair for n in range(count)})
        with pytest.raises(ConfigError, match="does not fit") as caught:
            pipeline.compiled.add_adapter(adapter)
        assert caught.value.why.count("no linear layer") == 20
        assert caught.value.why.endswith(end)


def test_a_session_that_nobody_holds_uses_nothing(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.adapter = "plain"
    forked = session.fork()
    del session
    with pytest.raises(SessionError, match="1 open sessions"):
        pipeline.compiled.remove_adapter("plain")
    del forked
    pipeline.compiled.remove_adapter("plain")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"a_scale": None}, "a is int8 without scales"),
        ({"a": torch.zeros(2, 64)}, "a is of floats, and has scales"),
        ({"a": torch.zeros(2, 64, dtype=torch.int16)}, "neither floats nor int8"),
        ({"b_scale": torch.ones(3)}, r"b has scales \[3\]"),
        ({"a_scale": torch.tensor([1.0, float("nan")])}, "not finite"),
    ],
)
def test_scales_of_int8_matrices_are_checked(pipeline: Pipeline, change: dict[str, Any], match: str) -> None:
    name = "model.layers.0.self_attn.q_proj"
    layer = pipeline.model.language_model.get_submodule(name)
    rows, columns = layer.out_features, layer.in_features
    low = LowRank(
        a=torch.ones(2, columns, dtype=torch.int8), b=torch.ones(rows, 2, dtype=torch.int8), scale=1.0,
        a_scale=torch.ones(2), b_scale=torch.ones(rows),
    )  # fmt: skip
    pipeline.compiled.add_adapter(Adapter(name="good", layers={name: low}))
    if "a" in change:
        change = {"a": torch.zeros(2, columns, dtype=change["a"].dtype)}
    with pytest.raises(ConfigError, match=match):
        pipeline.compiled.add_adapter(Adapter(name="bad", layers={name: evolve(low, **change)}))


def test_an_adapter_is_removed_when_no_open_session_uses_it(pipeline: Pipeline) -> None:
    other, compiled = pipeline.session(), pipeline.compiled
    session = pipeline.session()
    session.adapter = "plain"
    with pytest.raises(SessionError, match="adapter 'plain': 1 open sessions use it"):
        compiled.remove_adapter("plain")
    session.close()
    compiled.remove_adapter("plain")
    with pytest.raises(SessionError, match="no adapter 'plain'"):
        other.adapter = "plain"
    with pytest.raises(ConfigError, match="no adapter 'plain'"):
        compiled.remove_adapter("plain")


def test_a_second_adapter_of_one_name_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(DuplicateName, match="plain"):
        pipeline.compiled.add_adapter(adapter(pipeline, "plain", 2, 2, ("q_proj",)))
