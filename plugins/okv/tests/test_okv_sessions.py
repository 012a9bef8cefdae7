"""Sessions under okv: bounded peaks, hysteresis, the same rows however tokens are committed, turns, forks, files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from safetensors import safe_open
from safetensors.torch import save_file

from andes_sdk import Pipeline
from andes_sdk.errors import CheckpointError, SessionError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.types import Adapter, Inputs, LowRank, Proposal

PLUGINS = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
SMALL = {"least": 0, "sinks": 2, "recent": 6, "slack": 8, "chunk": 32}
SCORERS = ("streaming", "snapkv", "h2o", "keynorm", "critical", "kvzip", "kvzip+", "dropkv", "restkv", "rkv")
BACKENDS = ("torch", "numba")


def pipeline(backend: str = "torch", seed: int = 0, **okv: Any) -> Pipeline:
    numba = [{"numba": {"format": "f16", "activations": "exact"}}] if backend == "numba" else []
    return Pipeline.from_plugins([*PLUGINS, *numba, {"okv": {**SMALL, **okv}}], backend=backend, seed=seed)


def places(session: Any) -> list[list[list[int]]]:
    """Positions that are stored, per layer and head."""
    layers = range(session.model.text.layers)
    return [[p.tolist() for p in session.heads(layer)[2]] for layer in layers]


def row_bytes(pipe: Pipeline, number: int) -> int:
    return 2 * pipe.model.text.head_dim * number


def adapted(pipe: Pipeline) -> str:
    spec, noise = pipe.model.text, torch.Generator().manual_seed(5)
    layers = {}
    for name, (_, role) in pipe.model.llm.linears().items():
        if role == "v":
            rows = spec.kv_heads * spec.head_dim
            a, b = torch.randn(2, spec.width, generator=noise), torch.randn(rows, 2, generator=noise)
            layers[name] = LowRank(a=a, b=b, scale=0.5)
    compiled: Any = pipe.compiled
    compiled.add_adapter(Adapter(name="louder", layers=layers))
    return "louder"


# ---------------------------------------------------------------- bytes and peaks


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_never_holds_more_than_its_share_and_a_chunk(backend: str) -> None:
    pipe = pipeline(backend, keep=0.25, scorer="snapkv")
    policy: Any = pipe.policy
    session: Any = pipe.session()
    peak, heads = 0, policy.heads
    for work in session.chunks(plain_inputs(pipe, 640)):
        assert len(work.tokens) <= 32
        pipe.compiled.step([work])
        peak = max(peak, sum(map(sum, session.counts())))
        session.commit(reading=work.reading)
        assert sum(map(sum, session.stats.rows)) <= policy.budget(session.length)
    assert peak <= heads * (640 // 4 + 32)
    stats = session.stats
    assert all(160 <= n <= 168 for layer in stats.rows for n in layer)
    assert stats.kv_bytes == sum(map(sum, stats.rows)) * row_bytes(pipe, 4 if backend == "torch" else 2)
    full: Any = pipe.compiled.session(KeepAll())
    full.prefill(plain_inputs(pipe, 640))
    assert stats.kv_bytes <= 0.27 * full.stats.kv_bytes


def test_without_reading_a_prompt_stays_whole_until_its_end() -> None:
    pipe = pipeline(keep=0.25, scorer="snapkv", reading=False)
    session: Any = pipe.session()
    held = []
    for work in session.chunks(plain_inputs(pipe, 320)):
        pipe.compiled.step([work])
        session.commit(reading=work.reading)
        held.append(session.stats.rows[0][0])
    assert held == [32, 64, 96, 128, 160, 192, 224, 256, 288, 80]


@pytest.mark.parametrize("budget", ["head", "layer", "global", "uniform"])
def test_decoding_evicts_once_the_slack_is_used_up(budget: str) -> None:
    pipe = pipeline(rows=40, scorer="snapkv", budget=budget)
    policy: Any = pipe.policy
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 60))
    held = [sum(map(sum, session.stats.rows))]
    for token in range(40):
        session.extend([token])
        session.commit()
        held.append(sum(map(sum, session.stats.rows)))
    drops = [i for i, (a, b) in enumerate(itertools.pairwise(held)) if b < a]
    assert all(b - a == 9 for a, b in itertools.pairwise(drops))  # eight rows pile up, the ninth is too much
    assert len(drops) >= 4
    assert max(held) <= policy.heads * 48
    assert min(held[drops[0] + 1 :]) == policy.heads * 40


def test_uniform_holds_the_same_rows_in_every_head_and_layer() -> None:
    pipe = pipeline(rows=20, scorer="keynorm", budget="uniform")
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 200))
    found = places(session)
    assert all(head == found[0][0] for layer in found for head in layer)
    assert "the same rows in every head and layer" in str(pipe.explain())


def test_competing_heads_hold_different_numbers_of_rows_within_one_budget() -> None:
    pipe = pipeline(rows=30, scorer="snapkv", budget="global", slack=0)
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 200))
    counts = [n for layer in session.stats.rows for n in layer]
    assert len(set(counts)) > 1
    assert sum(counts) == 30 * len(counts)
    assert min(counts) >= 8  # sinks and recent rows


def test_sinks_and_recent_rows_are_there_in_every_head() -> None:
    for budget in ("head", "layer", "global"):
        session: Any = pipeline(rows=12, scorer="h2o", budget=budget, slack=0).session()
        session.prefill(plain_inputs(pipeline(), 150))
        for layer in places(session):
            for head in layer:
                assert head[:2] == [0, 1]
                assert head[-6:] == list(range(144, 150))


# ---------------------------------------------------------------- every scorer, both backends, pictures, adapters


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_compresses_pictures_and_adapted_rows(scorer: str, backend: str) -> None:
    pipe = pipeline(backend, rows=16, scorer=scorer, budget="layer", slack=4)
    policy: Any = pipe.policy
    session: Any = pipe.session()
    prompt = pipe.prepare([*conversation(0, answer=True), *conversation(1)])
    session.prefill(prompt)
    image = int((prompt.ids == pipe.tokenizer.placeholder("image")).sum())
    assert image > 0
    assert int(session.keeping.image.sum()) == image
    session.adapter = adapted(pipe)
    for token in range(12):
        logits, _ = session.extend([token])
        assert logits.isfinite().all()
        session.commit()
    held = sum(map(sum, session.stats.rows))
    assert policy.heads * 16 <= held <= policy.heads * 20
    assert session.stats.kv_bytes == held * row_bytes(pipe, 4 if backend == "torch" else 2)
    assert session.length == len(prompt.ids) + 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_changes_logits_behind_compressed_rows(backend: str) -> None:
    pipe = pipeline(backend, rows=16, scorer="snapkv")
    name, found = adapted(pipe), []
    for adapter in (None, name):
        session: Any = pipe.session()
        session.prefill(plain_inputs(pipe, 120))
        session.adapter = adapter
        found.append(session.extend([5])[0])
    assert not torch.allclose(*found)


def test_rows_of_pictures_and_of_text_keep_their_floor() -> None:
    pipe = pipeline(rows=24, scorer="keynorm", slack=0, floor=1.0, recent=1, sinks=0)
    session: Any = pipe.session()
    session.prefill(pipe.prepare([*conversation(0, answer=True), *conversation(1)]))
    image, seen = session.keeping.image, session.length
    least = int(24 * int(image.sum()) / seen)
    assert least > 0
    for layer in places(session):
        for head in layer:
            pictures = sum(bool(image[p]) for p in head)
            assert pictures >= least
            assert len(head) - pictures >= int(24 * (seen - int(image.sum())) / seen)


# ---------------------------------------------------------------- committing


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scorer", "budget"), [("snapkv", "layer"), ("h2o", "head"), ("kvzip+", "global")])
def test_several_tokens_at_once_and_one_by_one_hold_the_same_rows(scorer: str, budget: str, backend: str) -> None:
    pipe = pipeline(backend, rows=24, scorer=scorer, budget=budget)
    prompt, tokens = plain_inputs(pipe, 80), list(range(3, 63))
    one: Any = pipe.session()
    one.prefill(prompt)
    for token in tokens:
        one.extend([token])
        one.commit()
    many: Any = pipe.session()
    many.prefill(prompt)
    left = list(tokens)
    while left:
        guess = [*left[:5], 200]  # the last guess is wrong
        many.extend(guess)
        count = 1
        while count < min(5, len(left)) and not many.due(count):  # as the engine walks: no further than an eviction
            count += 1
        many.commit(list(range(count)))
        del left[:count]
    assert many.length == one.length
    assert places(many) == places(one)
    assert many.stats.kv_bytes == one.stats.kv_bytes


@frozen
class Knowing:
    """Guesses what it was told, with a wrong one now and then."""

    answer: Sequence[int]
    name: str = "knowing"
    taps: Sequence[int] = ()

    def open(self) -> Any:
        return Count()

    def propose(self, drafts: Sequence[Any], last: Sequence[int]) -> list[Proposal]:
        made = []
        for draft in drafts:
            start = draft.count + 1
            guess = list(self.answer[start : start + 4])
            if start % 3 == 0 and guess:
                guess[-1] = (guess[-1] + 1) % 100
            made.append(Proposal(tuple(guess)))
        return made


class Count:
    count = -1

    def __init__(self) -> None:
        self.prompt = True

    def read(self, tokens: Sequence[int], rows: Any) -> None:
        if self.prompt and len(tokens) > 16:
            self.count = 0
            return
        self.prompt = False
        self.count += len(tokens)

    def fork(self) -> Count:
        return self


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_speculative_run_gives_the_text_and_holds_the_rows_of_a_plain_one(backend: str) -> None:
    pipe = pipeline(backend, rows=24, scorer="snapkv")
    prompt, options = plain_inputs(pipe, 64), GenerationOptions(max_tokens=40)
    plain = evolve(pipe.engine(), ends=())
    first = plain.join(prompt, options)
    plain.run()
    fast = evolve(pipe.engine(), ends=(), decoder=Knowing(list(first.tokens)))
    second = fast.join(prompt, options)
    fast.run()
    assert list(second.tokens) == list(first.tokens)
    a, b = first.session, second.session
    assert b.stats.proposed > a.stats.proposed  # it did guess
    # the plain run commits the last token but one; what both have committed is held alike
    assert a.length == b.length
    assert places(b) == places(a)


def test_kept_rows_are_those_that_were_made_at_their_positions() -> None:
    pipe = pipeline(rows=20, scorer="snapkv", slack=0)
    prompt = plain_inputs(pipe, 100)
    small: Any = pipe.session()
    full: Any = pipe.compiled.session(KeepAll())
    for session in (small, full):
        session.prefill(prompt)
    keys, values, positions = small.heads(0)  # what the first layer makes does not depend on evictions
    for head, where in enumerate(positions):
        assert torch.allclose(keys[head], full.heads(0)[0][head][where], atol=1e-5)
        assert torch.allclose(values[head], full.heads(0)[1][head][where], atol=1e-5)


def test_a_second_turn_goes_on_behind_compressed_rows() -> None:
    pipe = pipeline(keep=0.5, scorer="snapkv")
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 100))
    session.extend([1, 2, 3])
    session.commit()
    logits = session.prefill(plain_inputs(pipe, 150, seed=8))
    assert logits.isfinite().all()
    assert session.length == 253
    assert all(126 <= n <= 126 + 8 for layer in session.stats.rows for n in layer)
    assert all(head[-1] == 252 for layer in places(session) for head in layer)


def test_a_context_within_the_budget_is_left_alone() -> None:
    pipe = pipeline(rows=100, scorer="h2o", chunk=16)
    prompt, found = plain_inputs(pipe, 60), []
    for policy in (pipe.policy, KeepAll()):
        session: Any = pipe.compiled.session(policy)
        session.prefill(prompt)
        found.append(session.extend([1, 2])[0])
        session.commit()
        assert all(n == 62 for layer in session.stats.rows for n in layer)
    assert torch.allclose(*found, atol=1e-5)


def test_thousands_of_equal_tokens_are_compressed_to_the_budget() -> None:
    pipe = pipeline(rows=32, scorer="snapkv", budget="global", slack=0, chunk=256)
    session: Any = pipe.session()
    session.prefill(Inputs(torch.full((2000,), 7)))
    assert sum(map(sum, session.stats.rows)) == 32 * pipe.policy.heads  # type: ignore[attr-defined]
    assert session.extend([7])[0].isfinite().all()


def test_a_budget_of_one_row_works_where_nothing_else_must_stay() -> None:
    pipe = pipeline(rows=1, sinks=0, recent=1, slack=0, scorer="keynorm", chunk=8)
    session: Any = pipe.session()
    session.prefill(plain_inputs(pipe, 50))
    assert places(session) == [[[49]] * pipe.model.text.kv_heads] * pipe.model.text.layers
    assert session.extend([3])[0].isfinite().all()
    session.commit()
    assert session.stats.rows[0][0] == 1


def test_a_cancelled_answer_leaves_the_others_and_the_policy_as_they_were() -> None:
    pipe = pipeline(rows=24, scorer="h2o")
    prompt, options = plain_inputs(pipe, 90), GenerationOptions(max_tokens=20)
    alone = evolve(pipe.engine(), ends=())
    wanted = alone.join(prompt, options)
    alone.run()
    engine = evolve(pipe.engine(), ends=())
    stays, goes = engine.join(prompt, options), engine.join(plain_inputs(pipe, 90, seed=9), options)
    for _ in range(5):
        engine.step()
    engine.leave(goes)
    engine.run()
    assert goes.finish == "cancelled"
    assert list(stays.tokens) == list(wanted.tokens)
    assert places(stays.session) == places(wanted.session)
    with pytest.raises(SessionError, match="closed"):
        goes.session.extend([1])


# ---------------------------------------------------------------- forks and files


def talk(session: Any, count: int = 30) -> list[torch.Tensor]:
    found = []
    for token in range(count):
        found.append(session.extend([token])[0])
        session.commit()
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scorer", ["h2o", "kvzip"])
def test_a_session_goes_on_from_a_fork_and_from_a_file(scorer: str, backend: str, tmp_path: Path) -> None:
    pipe = pipeline(backend, rows=24, scorer=scorer, budget="layer")
    session: Any = pipe.session()
    session.prefill(pipe.prepare(conversation(0)))
    talk(session, 25)
    file = pipe.save_session(session, tmp_path / "talk.safetensors")
    fork = session.fork()
    other = pipeline(backend, rows=24, scorer=scorer, budget="layer")
    restored = other.load_session(file)
    wanted = talk(session)
    for again in (fork, restored):
        assert all(torch.equal(a, b) for a, b in zip(talk(again), wanted, strict=True))
        assert places(again) == places(session)
    assert file.stat().st_size < 4 * session.stats.kv_bytes + 200_000


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Pipeline, Path]:
    pipe = pipeline(rows=24, scorer="snapkv")
    session = pipe.session()
    session.prefill(plain_inputs(pipe, 80))
    return pipe, pipe.save_session(session, tmp_path / "talk.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_short_is_refused(saved: tuple[Pipeline, Path], share: float) -> None:
    pipe, file = saved
    content = file.read_bytes()
    file.write_bytes(content[: math.floor(len(content) * share)])
    with pytest.raises(CheckpointError, match="is no session") as caught:
        pipe.load_session(file)
    assert str(file) in caught.value.who
    assert "save_session" in caught.value.fix


def test_a_flipped_bit_is_found(saved: tuple[Pipeline, Path]) -> None:
    pipe, file = saved
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        pipe.load_session(file)


def test_a_file_of_something_else_is_refused(saved: tuple[Pipeline, Path], tmp_path: Path) -> None:
    pipe, _ = saved
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no session"):
        pipe.load_session(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no session"):
        pipe.load_session(tmp_path / "absent")


def test_a_session_of_another_model_is_refused(saved: tuple[Pipeline, Path]) -> None:
    _, file = saved
    with pytest.raises(CheckpointError, match="another model") as caught:
        pipeline(seed=1, rows=24, scorer="snapkv").load_session(file)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["model"] in caught.value.why


def test_a_session_of_another_policy_is_refused(saved: tuple[Pipeline, Path]) -> None:
    _, file = saved
    for other in ({"rows": 25}, {"scorer": "h2o", "rows": 24}, {"budget": "layer", "rows": 24}):
        with pytest.raises(SessionError, match="taken elsewhere"):
            pipeline(**{"scorer": "snapkv", **other}).load_session(file)


def test_uncommitted_rows_are_not_saved(saved: tuple[Pipeline, Path], tmp_path: Path) -> None:
    pipe, _ = saved
    session = pipe.session()
    session.extend([1])
    with pytest.raises(SessionError, match="not committed"):
        pipe.save_session(session, tmp_path / "x")
    assert not (tmp_path / "x").exists()
