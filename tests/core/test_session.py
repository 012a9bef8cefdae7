"""Sessions: cache equals no cache, trees equal chains, evicted rows are gone."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen

from andes_sdk import Pipeline, hookimpl
from andes_sdk.errors import SessionError
from andes_sdk.runtime.attention import PackedAttention, Segment
from andes_sdk.types import Inputs, Work

PROMPT = torch.tensor([5, 9, 70, 33, 120, 44, 9, 8])
TOLERANCE = 1e-4  # float32, two layers: other shapes of the same product add in another order


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)


@torch.inference_mode()
def full_pass(pipeline: Pipeline, ids: torch.Tensor) -> torch.Tensor:
    """Logits of every row, computed at once without a cache."""
    model = pipeline.model
    hidden = model.hidden_states(model.llm.embed(ids), torch.arange(len(ids)), PackedAttention([Segment(len(ids))]))
    return model.logits(hidden)


def test_cache_equals_no_cache(pipeline: Pipeline) -> None:
    session = pipeline.session()
    expected = full_pass(pipeline, PROMPT)
    assert torch.allclose(session.prefill(Inputs(PROMPT[:3])), expected[2], atol=TOLERANCE)
    for i in range(3, len(PROMPT)):
        logits, hidden = session.extend([int(PROMPT[i])])
        session.commit()
        assert torch.allclose(logits[0], expected[i], atol=TOLERANCE)
        assert hidden.shape == (1, pipeline.model.text.width)
    assert session.length == len(PROMPT)


def test_a_chunked_prompt_equals_a_whole_one(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipeline.session().prefill(Inputs(PROMPT))
    monkeypatch.setattr(pipeline.compiled, "chunk_rows", 3)
    assert torch.allclose(pipeline.session().prefill(Inputs(PROMPT)), whole, atol=TOLERANCE)


def test_prefill_continues_an_earlier_prompt(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT[:5]))
    assert torch.allclose(session.prefill(Inputs(PROMPT[5:])), full_pass(pipeline, PROMPT)[-1], atol=TOLERANCE)


def test_every_path_of_a_tree_equals_its_chain(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    # 0 -> 1 -> 3 and 0 -> 2 -> 4; 5 starts a second root
    tokens, parents = [11, 12, 13, 14, 15, 16], [-1, 0, 0, 1, 2, -1]
    logits, _ = session.extend(tokens, parents)
    for path in ([0, 1, 3], [0, 2, 4], [5]):
        chain = torch.cat([PROMPT, torch.tensor([tokens[i] for i in path])])
        assert torch.allclose(logits[path], full_pass(pipeline, chain)[len(PROMPT) :], atol=TOLERANCE)


def test_a_committed_path_is_what_the_next_rows_see(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    session.extend([11, 12, 13, 14], [-1, 0, 0, 2])
    session.commit([0, 2, 3])
    logits, _ = session.extend([17])
    chain = torch.cat([PROMPT, torch.tensor([11, 13, 14, 17])])
    assert torch.allclose(logits[0], full_pass(pipeline, chain)[-1], atol=TOLERANCE)
    assert session.length == len(PROMPT) + 3


def test_a_chain_may_grow_over_several_calls_before_it_is_committed(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    session.extend([11])
    logits, _ = session.extend([12, 13])
    chain = torch.cat([PROMPT, torch.tensor([11, 12, 13])])
    assert torch.allclose(logits[-1], full_pass(pipeline, chain)[-1], atol=TOLERANCE)


def test_rollback_leaves_no_trace(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    before = session.stats
    session.extend([11, 12], [-1, -1])
    session.rollback()
    after = session.stats
    assert (after.kv_bytes, after.rows, after.committed) == (before.kv_bytes, before.rows, before.committed)
    again, _ = session.extend([17])
    assert torch.allclose(again[0], full_pass(pipeline, torch.cat([PROMPT, torch.tensor([17])]))[-1], atol=TOLERANCE)


def test_stats_count_bytes_and_rows_exactly(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    spec = pipeline.model.text
    assert session.stats.rows == ((8,) * spec.kv_heads,) * spec.layers
    # keys and values, 4 bytes each
    assert session.stats.kv_bytes == 2 * 4 * 8 * spec.kv_heads * spec.layers * spec.head_dim
    session.extend([1, 2, 3])
    session.commit([0])
    assert (session.stats.proposed, session.stats.accepted, session.stats.committed) == (3, 1, 9)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda s: s.extend([]), "no tokens"),
        (lambda s: s.extend([1, 2], [0, -1]), "do not fit"),
        (lambda s: s.extend([1], [-1, 0]), "do not fit"),
        (lambda s: (s.extend([1, 2, 3], [-1, 0, 0]), s.commit([1])), "no path"),
        (lambda s: (s.extend([1, 2, 3], [-1, 0, 0]), s.commit([0, 1, 2])), "no path"),
        (lambda s: (s.extend([1]), s.prefill(Inputs(PROMPT))), "not committed"),
        (lambda s: s.extend([1] * 5000), "positions"),
        (lambda s: s.extend([1, 1 << 20]), "no token 1048576"),
        (lambda s: s.extend([-1]), "no token -1"),
        (lambda s: s.prefill(Inputs(torch.tensor([1, 1 << 20]))), "no token 1048576"),
        (lambda s: setattr(s, "adapter", "home"), "no adapter"),
        (lambda s: (s.close(), s.extend([1])), "closed"),
    ],
)
def test_misuse_is_an_error(pipeline: Pipeline, action, message: str) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    with pytest.raises(SessionError, match=message):
        action(session)


def test_an_interrupted_pass_leaves_the_session_as_it_was(pipeline: Pipeline) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    session, clean = pipeline.session(), pipeline.session()
    for one in (session, clean):
        one.prefill(Inputs(PROMPT))
        one.extend([3])
    before = session.stats
    handle = pipeline.model.language_model.model.layers[1].register_forward_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            session.extend([1, 2])
    finally:
        handle.remove()
    assert session.stats == before
    assert torch.equal(session.extend([1, 2])[0], clean.extend([1, 2])[0])


def test_a_closed_session_holds_nothing(pipeline: Pipeline) -> None:
    session = pipeline.session()
    session.prefill(Inputs(PROMPT))
    session.extend([1, 2])
    session.close()
    assert (session.stats.kv_bytes, session.stats.committed) == (0, len(PROMPT))
    assert not any(n for layer in session.stats.rows for n in layer)


def test_several_sessions_step_together_as_they_would_alone(pipeline: Pipeline) -> None:
    def opened() -> list:
        sessions = [pipeline.session(), pipeline.session()]
        sessions[0].prefill(Inputs(PROMPT))
        sessions[1].prefill(Inputs(PROMPT[:2]))
        return sessions

    works = [Work(session=s, tokens=t) for s, t in zip(opened(), ([3], [4, 5]), strict=True)]
    for rows, session, tokens in zip(pipeline.compiled.step(works), opened(), ([3], [4, 5]), strict=True):
        alone = session.extend(tokens)
        assert torch.allclose(rows.logits, alone[0], atol=TOLERANCE)
        assert torch.allclose(rows.hidden, alone[1], atol=TOLERANCE)


@frozen(eq=False, kw_only=True)
class Ragged:
    """Head h keeps the first row and the last `rows + h`: another count per head."""

    contract = "1.1"
    rows: int = 3
    broken: str = ""

    @hookimpl
    def andes_cache_policy(self, model):
        return RaggedPolicy(self.rows, self.broken, model.text.layers)


@frozen
class RaggedPolicy:
    rows: int
    broken: str
    layers: int
    name: str = "ragged"
    window: int = 2
    taps: tuple[int, ...] = ()
    replays: bool = False

    def budget(self, seen: int) -> int:
        return self.layers * (min(seen, self.rows + 1) + min(seen, self.rows + 2))

    def open(self, state=None):
        return self

    def state(self):
        return {}

    def due(self, seen: int, held: int, reading: bool) -> bool:
        return True

    def keep(self, cache):
        return [self.of(layer) for layer in cache.layers]

    def of(self, layer):
        if self.broken == "order":
            return [torch.arange(len(k)).flip(0) for k in layer.keys]
        if self.broken == "greedy":
            return None
        assert layer.queries.shape[1] == min(self.window, len(layer.image))
        out = []
        for head, keys in enumerate(layer.keys):
            n = len(keys)
            tail = torch.arange(max(1, n - self.rows - head), n)
            out.append(torch.cat([torch.zeros(1, dtype=torch.int64), tail]) if n > self.rows + 1 else torch.arange(n))
        return out


@torch.inference_mode()
def test_evicted_rows_are_gone_and_the_others_keep_their_positions(pipeline: Pipeline) -> None:
    ragged = Pipeline.from_plan(pipeline.plan)._assembly.plan  # the same model
    cut = Pipeline.from_plugins(
        [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}, Ragged(rows=3)], seed=ragged.seed
    )
    session = cut.session()
    session.prefill(Inputs(PROMPT))
    assert session.stats.rows == ((4, 5),) * 2
    heads = session._layers[0].heads()
    assert heads[0][2].tolist() == [0, 5, 6, 7]
    assert heads[1][2].tolist() == [0, 4, 5, 6, 7]
    # keys keep their rotation: those of a full session at the same positions
    full = pipeline.session()
    full.prefill(Inputs(PROMPT))
    for (keys, _, positions), (all_keys, _, _) in zip(heads, full._layers[0].heads(), strict=True):
        assert torch.allclose(keys, all_keys[positions], atol=1e-5)
    for token in (1, 2):
        logits, _ = session.extend([token])
        session.commit()
        assert bool(logits.isfinite().all())
    assert session.stats.rows == ((4, 5),) * 2
    assert session.length == len(PROMPT) + 2
    assert session.stats.kv_bytes == 2 * 4 * 9 * 16 * 2


@pytest.mark.parametrize(("broken", "message"), [("order", "ascending"), ("greedy", "the budget is")])
def test_a_policy_that_breaks_its_word_is_named(tiny, broken: str, message: str) -> None:
    session = Pipeline.from_plugins([*tiny, Ragged(broken=broken)]).session()
    with pytest.raises(SessionError, match=message) as caught:
        session.prefill(Inputs(PROMPT))
    assert "ragged" in str(caught.value)


def test_uncommitted_rows_are_never_evicted(tiny) -> None:
    session = Pipeline.from_plugins([*tiny, Ragged(rows=3)]).session()
    session.prefill(Inputs(PROMPT))
    session.extend([1, 2, 3, 4, 5, 6])
    assert session._layers[0].counts() == (10, 11)
    assert session.stats.rows == ((4, 5),) * 2
    session.commit([0])
    assert session.stats.rows == ((4, 5),) * 2
