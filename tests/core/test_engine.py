"""The engine: conversations share passes, and each gets the answer it would get alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from attrs import evolve, field, frozen

from andes_sdk import Pipeline
from andes_sdk.errors import SessionError
from andes_sdk.runtime.engine import Conversation, Engine
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.runtime.sampling import TokenSampler
from andes_sdk.runtime.tree import Tree
from andes_sdk.testing.reference import ReferencePolicy
from andes_sdk.types import Inputs, Proposal, Rows, Work

PROMPTS = [torch.tensor([5, 9, 70, 33, 120, 44, 9, 8]), torch.tensor([7, 3]), torch.arange(20, 43)]
OPTIONS = [
    GenerationOptions(max_tokens=12),
    GenerationOptions(max_tokens=9, temperature=1.0, seed=4),
    GenerationOptions(max_tokens=7, temperature=0.8, top_k=50, repetition_penalty=1.3, seed=2),
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)


@pytest.fixture
def engine(pipeline: Pipeline) -> Iterator[Engine]:
    made = evolve(pipeline.engine(), ends=())
    yield made
    made.close()


def alone(engine: Engine, prompt: torch.Tensor, options: GenerationOptions) -> list[int]:
    one = engine.join(Inputs(prompt), options)
    engine.run()
    assert one.error is None
    return list(one.tokens)


@pytest.mark.parametrize("chunk", [1024, 3])
def test_answers_of_conversations_that_join_at_different_times_are_those_of_each_alone(
    pipeline: Pipeline, engine: Engine, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [alone(engine, p, o) for p, o in zip(PROMPTS, OPTIONS, strict=True)]
    monkeypatch.setattr(pipeline.compiled, "chunk_rows", chunk)
    some = []
    for prompt, options in zip(PROMPTS, OPTIONS, strict=True):
        some.append(engine.join(Inputs(prompt), options))
        engine.step()
        engine.step()
    engine.run()
    assert [list(c.tokens) for c in some] == wanted
    assert [c.finish for c in some] == ["length"] * 3


@frozen(eq=False)
class Branches:
    """Proposes the right answer as one branch of a tree, beside wrong ones."""

    answer: Sequence[int]
    name: str = "branches"
    taps: tuple[int, ...] = ()

    def open(self) -> Read:
        return Read(self)

    def propose(self, drafts: Sequence[Any], last: Sequence[int]) -> list[Proposal]:
        return [draft.guess() for draft in drafts]


@frozen(eq=False)
class Read:
    of: Branches
    tokens: list[int] = field(factory=list)

    def read(self, tokens: Sequence[int], rows: Rows) -> None:
        assert len(tokens) == len(rows.hidden)
        self.tokens.extend(tokens)

    def fork(self) -> Read:
        return Read(self.of, list(self.tokens))

    def guess(self) -> Proposal:
        done = len(self.tokens) - len(PROMPTS[0]) + 1
        right = list(self.of.answer[done : done + 2])
        if len(right) < 2:
            return Proposal()
        wrong = (right[0] + 1) % 500
        # wrong -> right[1], right[0] -> (wrong, right[1])
        return Proposal((wrong, right[0], right[1], wrong, right[1]), (-1, -1, 0, 1, 1))


def guessed(engine: Engine, wanted: Sequence[int], options: GenerationOptions) -> tuple[list[int], int]:
    """An answer with guesses of `Branches` -> its tokens, and the number of steps."""
    guessing = evolve(engine, decoder=Branches(wanted))
    one = guessing.join(Inputs(PROMPTS[0]), options)
    steps = 0
    while guessing.active:
        guessing.step()
        steps += 1
    assert one.error is None
    return list(one.tokens), steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_decoder_that_guesses_a_tree_changes_the_number_of_steps_but_not_the_text(
    engine: Engine, temperature: float
) -> None:
    options = GenerationOptions(max_tokens=12, temperature=temperature, seed=3)
    wanted = alone(engine, PROMPTS[0], options)
    tokens, steps = guessed(engine, wanted, options)
    assert tokens == wanted
    assert steps < 8


@pytest.mark.parametrize("slack", [0, 1, 4])
@pytest.mark.parametrize("rows", [4, 9])
def test_under_a_policy_that_evicts_a_decoder_changes_nothing_of_the_text_either(
    pipeline: Pipeline, engine: Engine, rows: int, slack: int
) -> None:
    policy = evolve(ReferencePolicy(rows=rows, first=1).andes_cache_policy(model=pipeline.model), slack=slack)
    evicting = evolve(engine, policy=policy)
    options = GenerationOptions(max_tokens=24, temperature=1.0, seed=3)
    wanted = alone(evicting, PROMPTS[0], options)
    tokens, steps = guessed(evicting, wanted, options)
    assert tokens == wanted != alone(engine, PROMPTS[0], options)
    assert (steps < 20) == (slack > 0)  # with room for one row more, guesses save steps


class Raises:
    def allowed(self, answer: Sequence[int]) -> torch.Tensor | None:
        if len(answer) == 2:
            raise ValueError("no more")
        return None


def test_an_error_in_one_conversation_leaves_the_others_alone(engine: Engine) -> None:
    wanted = [alone(engine, p, o) for p, o in zip(PROMPTS, OPTIONS, strict=True)]
    good = [engine.join(Inputs(p), o) for p, o in zip(PROMPTS, OPTIONS, strict=True)]
    bad = engine.join(Inputs(PROMPTS[0]), GenerationOptions(constraint=Raises()))
    long = engine.join(Inputs(torch.ones(5000, dtype=torch.int64)), OPTIONS[0])
    engine.run()
    assert [list(c.tokens) for c in good] == wanted
    assert (bad.finish, type(bad.error), len(bad.tokens)) == ("error", SessionError, 2)
    assert bad.error is not None
    assert type(bad.error.__cause__) is ValueError
    assert (long.finish, type(long.error)) == ("error", SessionError)


def test_one_of_several_answers_to_a_prompt_may_fail_or_leave_alone(engine: Engine) -> None:
    class Never:
        def allowed(self, answer: Sequence[int]) -> torch.Tensor | None:
            raise ValueError("never")

    wanted = alone(engine, PROMPTS[0], OPTIONS[1])
    options = [GenerationOptions(constraint=Never()), OPTIONS[1], OPTIONS[0]]
    some = engine.join_many(Inputs(PROMPTS[0]), options, [None] * 3)
    engine.leave(some[2])
    engine.run()
    assert [c.finish for c in some] == ["error", "length", "cancelled"]
    assert list(some[1].tokens) == wanted


def test_when_the_one_who_reads_leaves_the_next_in_line_reads_the_prompt(engine: Engine) -> None:
    wanted = alone(engine, PROMPTS[0], OPTIONS[1])
    some = engine.join_many(Inputs(PROMPTS[0]), OPTIONS[:2], [None] * 2)
    engine.leave(some[0])
    engine.run()
    assert list(some[1].tokens) == wanted


def test_cancelling_closes_the_session(engine: Engine) -> None:
    one = engine.join(Inputs(PROMPTS[0]), OPTIONS[0])
    engine.step()
    engine.leave(one)
    assert (one.finish, engine.active) == ("cancelled", [])
    with pytest.raises(SessionError, match="closed"):
        one.session.extend([1])


def test_a_full_context_ends_with_length_and_keeps_the_tokens(pipeline: Pipeline, engine: Engine) -> None:
    limit = pipeline.model.text.max_positions
    prompt = torch.arange(limit - 3) % 400
    one = engine.join(Inputs(prompt), GenerationOptions(max_tokens=50))
    engine.run()
    assert (one.finish, one.error) == ("length", None)
    assert 3 <= len(one.tokens) <= 4


def test_log_probabilities_are_those_of_torch(engine: Engine) -> None:
    seen: list[torch.Tensor] = []

    def watch(logits: torch.Tensor, token: int) -> None:
        seen.append(torch.log_softmax(logits.double(), 0))

    one: Conversation = engine.join(
        Inputs(PROMPTS[0]), GenerationOptions(max_tokens=5, temperature=1.0, logprobs=3), watch=watch
    )
    engine.run()
    for found, wanted, token in zip(one.sampler.logprobs, seen, one.tokens, strict=True):
        assert found.token == token
        assert found.logprob == pytest.approx(float(wanted[token]), abs=1e-9)
        best = wanted.topk(3)
        assert [t for t, _ in found.top] == best.indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-9)


class Even:
    def allowed(self, answer: Sequence[int]) -> torch.Tensor:
        return torch.arange(512) % 2 == 0


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_constraint_is_obeyed(engine: Engine, temperature: float) -> None:
    tokens = alone(engine, PROMPTS[0], GenerationOptions(max_tokens=9, temperature=temperature, constraint=Even()))
    assert not any(t % 2 for t in tokens)


def test_several_answers_read_their_prompt_once(
    pipeline: Pipeline, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [alone(engine, PROMPTS[0], o) for o in OPTIONS]
    works: list[int] = []
    step = pipeline.compiled.step

    def counted(work: Sequence[Work]) -> list[Rows]:
        works.extend(len(w.tokens) for w in work if w.embeds is not None)
        return step(work)

    monkeypatch.setattr(pipeline.compiled, "step", counted)
    some = engine.join_many(Inputs(PROMPTS[0]), OPTIONS, [None] * 3)
    engine.run()
    assert works == [len(PROMPTS[0])]
    assert [list(c.tokens) for c in some] == wanted


def test_a_forked_and_a_restored_session_go_on_to_the_bit(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPTS[0]))
    others = [session.fork(), pipeline.compiled.restore(session.state(), KeepAll())]
    wanted = session.extend([1, 2, 3])[0]
    session.commit()
    for other in others:
        assert other.length == len(PROMPTS[0])
        assert torch.equal(other.extend([1, 2, 3])[0], wanted)


def test_a_state_that_lacks_a_part_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(SessionError, match="no state of a session"):
        pipeline.compiled.restore({}, KeepAll())


def test_a_tree_of_61_rows_is_that_of_a_naive_matrix() -> None:
    random = torch.Generator().manual_seed(0)
    parents = [int(torch.randint(-1, max(n, 1), (1,), generator=random)) if n else -1 for n in range(61)]
    step = Tree().add(61, parents, 10, torch.device("cpu"))
    wanted = torch.zeros(61, 61, dtype=torch.bool)
    for row in range(61):
        at = row
        while at >= 0:
            wanted[row, at], at = True, parents[at]
    assert step.visible is not None
    assert torch.equal(step.visible, wanted)
    assert torch.equal(step.positions, 9 + wanted.sum(1))


def test_logits_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(SessionError, match="finite"):
        TokenSampler(GenerationOptions(), []).next(torch.tensor([0.0, torch.nan]), 0)


class Memory:
    """A policy of one memory: scores rows by their first number, replays the prompt's first rows, keeps the best."""

    name, window, taps, replays = "memory", 0, (1,), True

    def __init__(self, most: int = 1000) -> None:
        self.most, self.shown, self.seen = most, [], []  # type: ignore[var-annotated]

    def budget(self, seen: int) -> None:
        return None

    def open(self, state: Any = None) -> Memory:
        return self

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([hidden[:, 0], hidden[:, 1]])

    def due(self, seen: int, held: int, reading: bool) -> bool:
        return True

    def keep(self, cache: Any) -> list[Any]:
        layer = cache.layers[1]
        self.seen.append([(s.clone(), p.clone()) for s, p in zip(layer.scores, layer.positions, strict=True)])
        assert len(cache.embeds) == cache.seen
        cache.replay(cache.embeds[:4], lambda *shown: self.shown.append(tuple(torch.as_tensor(s) for s in shown)))
        return [None, [s.topk(min(self.most, len(s))).indices.sort().values for s in layer.scores]]


@pytest.fixture
def tapped() -> Pipeline:
    made = Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)
    made.__dict__["compiled"] = made._backend.compile(made.model, device="cpu", dtype="float32", taps=(1,))
    return made


def test_a_replay_shows_queries_and_keys_and_leaves_the_session_as_it_was(tapped: Pipeline) -> None:
    policy, spec = Memory(), tapped.model.text
    session, plain = tapped.compiled.session(policy), tapped.compiled.session(KeepAll())
    assert torch.equal(session.prefill(Inputs(PROMPTS[0])), plain.prefill(Inputs(PROMPTS[0])))
    assert [int(layer) for layer, _, _ in policy.shown] == list(range(spec.layers))
    for _, queries, keys in policy.shown:
        assert queries.shape == (spec.query_heads, 4, spec.head_dim)
        assert keys.shape == (spec.kv_heads, 4, spec.head_dim)
    # the first layer's keys depend on inputs and positions alone: those of the same tokens read on
    plain.extend(PROMPTS[0][:4].tolist())
    stored = torch.stack([k[-4:] for k in plain.heads(0)[0]])  # type: ignore[attr-defined]
    assert torch.allclose(policy.shown[0][2], stored, atol=1e-5)
    plain.rollback()
    assert session.stats.rows == plain.stats.rows
    assert torch.equal(session.extend([1, 2])[0], plain.extend([1, 2])[0])


def test_scores_stay_beside_their_rows_through_commit_and_eviction(tapped: Pipeline) -> None:
    policy, every = Memory(most=5), Memory()
    session, whole = tapped.compiled.session(policy), tapped.compiled.session(every)
    for one in (session, whole):
        one.prefill(Inputs(PROMPTS[0]))
    assert [len(s) for s, _ in policy.seen[0]] == [8, 8]
    tree = ([1, 2, 3], [-1, 0, 0])
    for one in (session, whole):
        one.extend(*tree)
        one.commit([0, 2])
    for (scores, positions), (before, at) in zip(policy.seen[1], policy.seen[0], strict=True):
        assert len(scores) == 7
        wanted = before.topk(5).indices.sort().values
        assert positions.tolist() == [*at[wanted].tolist(), 8, 9]
        assert torch.equal(scores[:5], before[wanted])
    session.extend([4])
    session.rollback()
    assert [len(s) for s in session.keeping.scores[1]] == [5, 5]  # type: ignore[attr-defined]


def test_a_scorer_that_fails_leaves_its_rows_committed_and_is_asked_again(tapped: Pipeline) -> None:
    class Fails(Memory):
        fail = True

        def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            if self.fail:
                raise ValueError("no score")
            return super().score(layer, hidden)

    policy = Fails()
    session, whole = tapped.compiled.session(policy), tapped.compiled.session(Memory())
    whole.prefill(Inputs(PROMPTS[0]))
    with pytest.raises(ValueError, match="no score"):
        session.prefill(Inputs(PROMPTS[0]))
    assert session.length == whole.length
    policy.fail = False
    for one in (session, whole):
        one.extend([5])
        one.commit()
    for one, other in zip(session.keeping.scores[1], whole.keeping.scores[1], strict=True):  # type: ignore[attr-defined]
        assert torch.allclose(one, other, atol=1e-6)


def test_rows_are_scored_alike_however_many_are_committed_at_once(tapped: Pipeline) -> None:
    class Waits(Memory):
        def due(self, seen: int, held: int, reading: bool) -> bool:
            return False

        def score(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(hidden))
            return super().score(layer, hidden)

    by_ones, by_threes = Waits(), Waits()
    for policy, size in ((by_ones, 1), (by_threes, 3)):
        session = tapped.compiled.session(policy)
        for start in range(0, 150, size):
            session.extend([(start + n) % 50 for n in range(size)])
            session.commit()
        assert policy.seen == [64, 64]
        assert [len(s) for s in session.keeping.scores[1]] == [150, 150]  # type: ignore[attr-defined]
        assert policy.seen == [64, 64, 22]


def test_a_step_that_fails_leaves_all_its_sessions_as_they_were(tapped: Pipeline) -> None:
    class Fails(Memory):
        failing = False
        replays = property(lambda self: int("two") if self.failing else True)

    fails = Fails()
    first, second = tapped.compiled.session(Memory()), tapped.compiled.session(fails)
    for one in (first, second):
        one.prefill(Inputs(PROMPTS[0]))
    before = [s.stats for s in (first, second)]
    fails.failing = True
    with pytest.raises(ValueError, match="two"):
        tapped.compiled.step([Work(session=first, tokens=[1]), Work(session=second, tokens=[1, 2])])
    fails.failing = False
    assert [s.stats for s in (first, second)] == before
    for one in (first, second):
        one.rollback()
    with pytest.raises(SessionError, match="do not fit") as caught:
        tapped.compiled.step([Work(session=first, tokens=[1]), Work(session=second, tokens=[1], parents=[3])])
    assert caught.value.session is second
    assert torch.equal(first.extend([5])[0], second.extend([5])[0])
