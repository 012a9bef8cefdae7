"""States that are not whole or not one's own are refused by name, and replays stay within the model's positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import define, evolve, frozen

from andes_sdk import Pipeline
from andes_sdk.errors import SessionError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.types import Inputs

LIMIT = 40
"""Positions of the model."""
PROMPT = torch.arange(20, 50)
State = dict[str, torch.Tensor]


@frozen(eq=False)
class Curious:
    """A policy that scores, replays the last `replayed` inputs at every commit, and keeps 20 rows per head."""

    replayed: int = 6
    most: int = 20
    name: str = "curious"
    window: int = 2
    taps: tuple[int, ...] = (1,)
    replays: bool = True

    def budget(self, seen: int) -> int:
        return 4 * min(seen, self.most)

    def open(self, state: Any = None) -> CuriousKeeper:
        return CuriousKeeper(self, 0 if state is None else int(state["asked"]))


@define(eq=False)
class CuriousKeeper:
    policy: Curious
    asked: int

    def state(self) -> State:
        return {"asked": torch.tensor(self.asked)}

    def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([hidden[:, 0], hidden[:, 1]])

    def due(self, seen: int, held: int, reading: bool) -> bool:
        return True

    def keep(self, cache: Any) -> list[Any]:
        self.asked += 1
        shown: list[tuple[int, ...]] = []
        cache.replay(cache.embeds[-self.policy.replayed :], lambda layer, q, k: shown.append((layer, *k.shape)))
        assert [s[0] for s in shown] == [0, 1]
        assert all(s[2] == min(self.policy.replayed, cache.seen) for s in shown)
        return [[torch.arange(max(0, len(k) - self.policy.most), len(k)) for k in x.keys] for x in cache.layers]


@pytest.fixture
def pipe() -> Pipeline:
    lm = ReferenceLanguageModel(max_positions=LIMIT)
    made = Pipeline.from_plugins([ReferenceEncoder(), ReferenceProjector(), lm, ReferenceTokenizer()])
    made.__dict__["compiled"] = made._backend.compile(made.model, device="cpu", dtype="float32", taps=(1,))
    return made


@pytest.fixture
def state(pipe: Pipeline) -> State:
    session = pipe.compiled.session(Curious())
    session.prefill(Inputs(PROMPT))
    return dict(session.state())


# ---------------------------------------------------------------- states


def test_every_part_of_a_state_is_missed_by_its_name(pipe: Pipeline, state: State) -> None:
    kinds = {name.split(".")[0] for name in state}
    assert kinds == {"about", "embeds", "image", "keeper", "kv", "score", "window"}
    for name in state:
        part = {k: v for k, v in state.items() if k != name}
        with pytest.raises(SessionError, match="no state of a session") as caught:
            pipe.compiled.restore(part, Curious())
        assert name in caught.value.why
        assert caught.value.who
        assert caught.value.fix


def about(state: State, **changes: Any) -> State:
    facts = {**json.loads(bytes(state["about"].tolist())), **changes}
    return {**state, "about": torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)}


SPOILT: dict[str, Callable[[State], Any]] = {
    "nothing": lambda s: {},
    "no mapping": lambda s: None,
    "no JSON": lambda s: {**s, "about": torch.zeros(3, dtype=torch.uint8)},
    "a list": lambda s: {**s, "about": torch.frombuffer(bytearray(b"[1]"), dtype=torch.uint8)},
    "numbers": lambda s: {**s, "about": torch.zeros(3)},
    "rows cut off": lambda s: {**s, "kv.0.keys": s["kv.0.keys"][:-1]},
    "counts of one head": lambda s: {**s, "kv.0.counts": s["kv.0.counts"][:1]},
    "pictures of fewer rows": lambda s: {**s, "image": s["image"][:-1]},
    "inputs of fewer rows": lambda s: {**s, "embeds": s["embeds"][:-1]},
    "another number of rows": lambda s: about(s, held=7),
    "no length": lambda s: about(s, length=None),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_state_is_refused(pipe: Pipeline, state: State, spoil: Callable[[State], Any]) -> None:
    with pytest.raises(SessionError, match="no state of a session") as caught:
        pipe.compiled.restore(spoil(state), Curious())
    assert caught.value.who == "restore"
    assert caught.value.why
    assert "Session.state()" in caught.value.fix


@pytest.mark.parametrize("facts", [{"policy": "other"}, {"kv": "bfloat16"}, {"session": "NumbaSession"}, {"sizes": {}}])
def test_a_state_of_elsewhere_says_what_differs(pipe: Pipeline, state: State, facts: dict[str, Any]) -> None:
    with pytest.raises(SessionError, match="taken elsewhere") as caught:
        pipe.compiled.restore(about(state, **facts), Curious())
    assert f"{next(iter(facts))}: " in caught.value.why


def test_a_policy_never_sees_the_memory_of_another(pipe: Pipeline, state: State) -> None:
    class Strict(Curious):
        def open(self, state: Any = None) -> Any:
            raise AssertionError("opened")

    with pytest.raises(SessionError, match="taken elsewhere"):
        pipe.compiled.restore(state, Strict(name="strict"))
    with pytest.raises(SessionError, match="taken elsewhere"):
        pipe.compiled.restore(state, KeepAll())


def test_a_policy_that_cannot_go_on_is_named(pipe: Pipeline, state: State) -> None:
    class Newer(Curious):
        def open(self, state: Any = None) -> Any:
            return state["votes"]

    with pytest.raises(SessionError, match="cache policy 'curious'") as caught:
        pipe.compiled.restore(state, Newer())
    assert "votes" in caught.value.why


def test_a_policy_of_the_same_name_that_wants_inputs_is_refused_without_them(pipe: Pipeline) -> None:
    session = pipe.compiled.session(evolve(Curious(), replays=False, taps=()))
    with pytest.raises(TypeError):
        session.prefill(Inputs(PROMPT))  # it asks for what it did not say
    calm = _Calm()
    session = pipe.compiled.session(calm)
    session.prefill(Inputs(PROMPT))
    with pytest.raises(SessionError, match="no state of a session"):
        pipe.compiled.restore(session.state(), evolve(calm, replays=True))
    assert pipe.compiled.restore(session.state(), calm).length == len(PROMPT)


@frozen(eq=False)
class _Calm(Curious):
    replays: bool = False

    def open(self, state: Any = None) -> Any:
        return _CalmKeeper(self, 0)


class _CalmKeeper(CuriousKeeper):
    def keep(self, cache: Any) -> list[Any]:
        return [[torch.arange(max(0, len(k) - self.policy.most), len(k)) for k in x.keys] for x in cache.layers]


@pytest.mark.parametrize("shape", [(30,), (1, 30), (2, 29), (30, 2)])
def test_scores_of_another_shape_are_refused(pipe: Pipeline, shape: tuple[int, ...]) -> None:
    class Odd(CuriousKeeper):
        def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return torch.zeros(shape)

    @frozen(eq=False)
    class Oddly(Curious):
        def open(self, state: Any = None) -> Any:
            return Odd(self, 0)

    with pytest.raises(SessionError, match=r"scores of shape .* for 30 rows and 2 KV heads") as caught:
        pipe.compiled.session(Oddly()).prefill(Inputs(PROMPT))
    assert "curious" in str(caught.value)


# ---------------------------------------------------------------- replays near the last position


def watched(pipe: Pipeline) -> list[list[int]]:
    """Positions of every pass to come."""
    seen: list[list[int]] = []
    inner = pipe.model.hidden_states

    def hidden_states(embeds: Any, positions: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(positions.tolist())
        return inner(embeds, positions, *rest, **more)

    pipe.model.hidden_states = hidden_states  # type: ignore[method-assign]
    return seen


def test_a_replay_near_the_last_position_stays_within_the_model(pipe: Pipeline) -> None:
    seen, session = watched(pipe), pipe.compiled.session(Curious(replayed=6))
    session.prefill(Inputs(PROMPT))
    assert seen[-1] == [30, 31, 32, 33, 34, 35]  # behind the rows that are stored, while there is room
    for token in range(LIMIT - len(PROMPT)):
        session.extend([token])
        session.commit()
    assert max(max(positions) for positions in seen) == LIMIT - 1
    assert seen[-1] == [34, 35, 36, 37, 38, 39]  # no position is left behind 40 rows
    assert session.length == LIMIT
    with pytest.raises(SessionError, match="exceed the model's 40 positions"):
        session.extend([1])


@torch.inference_mode()
def test_a_replay_at_the_end_leaves_the_session_as_it_was(pipe: Pipeline) -> None:
    answers = []
    for policy in (Curious(replayed=12), _Calm()):
        session = pipe.compiled.session(policy)
        session.prefill(Inputs(torch.arange(20, 20 + LIMIT - 2)))
        answers.append(session.extend([1, 2])[0])
        session.commit()
    assert torch.equal(*answers)


def test_an_answer_that_fills_the_context_ends_with_length_under_a_policy_that_replays(pipe: Pipeline) -> None:
    seen = watched(pipe)
    engine = evolve(pipe.engine(), policy=Curious(replayed=12), ends=())
    (one, other) = engine.join_many(Inputs(PROMPT), [GenerationOptions(max_tokens=99)] * 2, [None] * 2)
    engine.run()
    for conversation in (one, other):
        assert conversation.error is None
        assert conversation.finish == "length"
        assert conversation.session.length == LIMIT
    assert max(max(positions) for positions in seen) == LIMIT - 1


@pytest.mark.parametrize("rows", [0, LIMIT + 1])
def test_a_replay_that_cannot_fit_is_refused_and_changes_nothing(pipe: Pipeline, rows: int) -> None:
    class Asks(Curious):
        def open(self, state: Any = None) -> Any:
            return _AsksKeeper(self, 0)

    class _AsksKeeper(CuriousKeeper):
        def keep(self, cache: Any) -> list[Any]:
            with pytest.raises(SessionError, match=f"replays {rows} rows") as caught:
                cache.replay(torch.zeros(rows, cache.embeds.shape[1]), lambda *shown: None)
            assert "curious" in caught.value.who
            return [[torch.arange(20)] * 2] * 2

    session = pipe.compiled.session(Asks())
    session.prefill(Inputs(PROMPT))
    assert session.stats.rows == ((20, 20), (20, 20))
    assert session.extend([1])[0].isfinite().all()
