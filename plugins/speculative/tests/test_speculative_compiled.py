"""Draft heads that run on the backend of their model: they say nearly what they say on torch, and forget as they do."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from andes_numba.draft import HeadRows, grouped
from andes_speculative.block_drafter import BlockDrafter
from andes_speculative.head_drafter import WINDOW, HeadDrafter
from andes_speculative.running import OnTorch, Runners, runners
from andes_speculative.testing import guessing, lively, new_block, new_head
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable
from andes_sdk.runtime.options import GenerationOptions


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return lively(backend="numba")


def near(got: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> None:
    """int8 weights and activations: within 4 % of the largest."""
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) < 0.04 * float(other.abs().max())


def both(pipe: Pipeline, head: Any) -> list[Any]:
    made = Runners(head, OnTorch(head, pipe.model))
    compiled = made.of(pipe.compiled)
    assert compiled.facts.startswith("compiled, w8: ")
    assert made.of(pipe.compiled) is compiled  # packed once
    assert compiled.one > 0
    return [compiled, made.torch]


@torch.inference_mode()
def test_a_compiled_path_is_that_of_torch_for_long_texts_short_ones_and_forks(pipe: Pipeline) -> None:
    head = new_head(pipe.model)
    every, width = both(pipe, head), head.shape.width
    torch.manual_seed(0)
    features, embeds = torch.randn(30, len(head.shape.taps), width), torch.randn(30, width)
    near(*((one.joined(features),) for one in every))
    assert torch.allclose(*(one.embed([3, 9]) for one in every))
    hidden, seen = every[1].joined(features), [[one.open(), one.open()] for one in every]
    # 23 rows are two passes, the second of which also begins the other text
    for counts, starts in (((20, 3), (0, 0)), ((1, 1), (20, 3)), ((2, 4), (21, 4))):
        where, rows = [range(s, s + n) for s, n in zip(starts, counts, strict=True)], sum(counts)
        near(*(one.run(own, where, embeds[:rows], hidden[:rows]) for one, own in zip(every, seen, strict=True)))
    for own in seen:
        fork = own[0].fork()
        own[0].cut(5)
        own[0].keep_last(10)
        own[1] = fork
        assert [len(rows) for rows in own] == [10, 23]
    where = [range(18, 19), range(23, 24)]
    near(*(one.run(own, where, embeds[:2], hidden[:2]) for one, own in zip(every, seen, strict=True)))


@torch.inference_mode()
def test_rows_that_the_model_read_are_kept_in_int8_as_in_other_numbers(pipe: Pipeline) -> None:
    compiled, _ = both(pipe, new_block(pipe.model))
    features = torch.randn(3, 3, compiled.sizes.width)
    features[1] = 0.0
    kept = [HeadRows(compiled.sizes, kv) for kv in ("f32", "int8")]
    for rows in kept:
        compiled.note(rows, features, range(3))
    (exact, values, positions), (rounded, other, _) = (rows.store.head(1, 0) for rows in kept)
    near((rounded, other), (exact, values))
    assert positions.tolist() == [0, 1, 2]
    assert bool((rounded[1] == 0).all())


@torch.inference_mode()
def test_a_compiled_block_is_that_of_torch(pipe: Pipeline) -> None:
    head = new_block(pipe.model)
    every = both(pipe, head)
    torch.manual_seed(0)
    features, embeds = torch.randn(30, len(head.shape.taps), head.shape.width), torch.randn(2, head.shape.width)
    seen = [[one.open(), one.open()] for one in every]
    for one, (long, short) in zip(every, seen, strict=True):
        one.note(long, features[:20], range(20))
        one.note(short, features[20:23], range(3))
        one.note(long, features[23:25], range(20, 22))
        long.keep_last(12)
        assert [len(long), len(short)] == [12, 3]
    blocks = head.entering(embeds)
    for _ in range(2):  # a block leaves nothing behind
        near(*(one.block(own, [22, 3], blocks) for one, own in zip(every, seen, strict=True)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 16))
def test_rows_are_grouped_in_their_order_and_no_group_is_too_large(counts: list[int], most: int) -> None:
    groups = list(grouped(counts, most))
    assert all(sum(stop - start for _, start, stop in group) <= most for group in groups)
    assert all(len({who for who, _, _ in group}) == len(group) for group in groups)
    rows = [(who, n) for group in groups for who, start, stop in group for n in range(start, stop)]
    assert rows == [(who, n) for who, count in enumerate(counts) for n in range(count)]


@pytest.mark.parametrize("kind", ["eagle3", "block"])
def test_beside_a_compiled_model_a_head_is_compiled_and_explain_says_so(kind: str, tmp_path: Any) -> None:
    texts, facts = [], []
    base = lively(backend="numba")
    for plugins in ([], [guessing(kind, base.model, tmp_path)]):
        pipe = lively(*plugins, backend="numba")
        messages = [{"role": "user", "content": "again and again"}]
        texts.append(pipe.generate(messages, GenerationOptions(max_tokens=12)).tokens)
        facts.append({row.part: row.value for row in pipe.explain().rows})
    assert texts[0] == texts[1]
    assert facts[1]["drafter"].startswith(kind)
    assert pipe.decoder.drafter.runners.last.facts.startswith("compiled, w8: ")  # type: ignore[attr-defined]
    assert facts[1]["draft head"].startswith("compiled, w8: ")


def test_what_a_backend_cannot_run_stays_on_torch_and_why_is_told(pipe: Pipeline) -> None:
    class Refusing:
        def compile_head(self, plan: Any) -> Any:
            raise BackendUnavailable("no", who="it", why="its width is 7", fix="none")

    head = new_head(pipe.model)
    made, refusing = runners(head, pipe.model), Refusing()
    assert made.of(refusing).facts == "on torch: its width is 7"
    assert isinstance(made.of(refusing), OnTorch)
    assert made.of(object()).facts == "on torch"
    plan = head.blueprint()
    with pytest.raises(BackendUnavailable, match="width is 40"):
        pipe.compiled.compile_head({**plan, "head": torch.zeros(64, 40)})  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match="single layer"):
        pipe.compiled.compile_head({**plan, "layers": 2 * plan["layers"]})  # type: ignore[attr-defined]


def test_a_memory_keeps_what_ran_it_when_it_joins_again(pipe: Pipeline) -> None:
    drafter = HeadDrafter(new_head(pipe.model), pipe.model)
    memory = drafter.open()
    assert memory.runner.facts == "on torch"
    session = pipe.session()
    memory.join(session, None)  # type: ignore[arg-type]
    compiled = memory.runner
    assert compiled.facts.startswith("compiled")
    width = drafter.head.shape.width
    compiled.run([memory.seen], [range(1)], torch.zeros(1, width), torch.zeros(1, width))
    memory.join(object(), None)  # type: ignore[arg-type]
    assert memory.runner is compiled
    assert len(memory.fork().seen) == 1


def test_a_head_does_not_keep_a_model_that_nobody_uses(pipe: Pipeline) -> None:
    made, other = runners(new_head(pipe.model), pipe.model), lively(backend="numba")
    model = ref(other.compiled)
    assert made.of(other.compiled).facts.startswith("compiled")
    assert model() is not None
    del other
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("drafter", [HeadDrafter, BlockDrafter])
def test_what_was_read_while_nobody_asked_is_kept_as_far_as_it_will_be_seen(pipe: Pipeline, drafter: Any) -> None:
    """A head that is not asked reads on: its memory does not grow, and its rows stand where those of the text do."""
    head = (new_head if drafter is HeadDrafter else new_block)(pipe.model)
    memory = drafter(head, pipe.model).open()
    width, taps, read = head.shape.width, len(head.shape.taps), 0
    for count in (5, *[1] * (WINDOW + 300), 40):
        rows = SimpleNamespace(embeds=torch.zeros(count, width), features=torch.zeros(count, taps, width))
        memory.read([1] * count, rows)
        read += count
        assert memory.waiting == sum(len(part[0] if isinstance(part, tuple) else part) for part in memory.todo)
    assert WINDOW <= memory.waiting <= WINDOW + 40
    ends = memory.position if drafter is BlockDrafter else memory.position + memory.waiting + 1
    assert ends == read
    assert memory.unread == memory.waiting + 1
