from functools import cache

import numpy as np
import pytest
import torch
from andes_numba import block_attention, passes
from andes_numba.activations import address
from andes_numba.attention import look
from andes_numba.simd import Tag
from andes_numba.step import Store
from numba import njit

from andes_sdk import Pipeline
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import plain_inputs
from andes_sdk.testing.reference import ReferencePolicy
from andes_sdk.types import Inputs, Work

# ---------------------------------------------------------------- attention alone


@njit
def together(kv, store, qkv, count, heads, out):
    keys, groups = block_attention.longest(store) + count, block_attention.row_groups(store, count, heads)
    sight, desk = block_attention.sights(store, count), block_attention.desks(heads, keys, 1)[0]
    for n in range(len(groups)):
        for head in range(heads[1]):
            block_attention.look_together(kv, 0, store, groups[n], sight, head, qkv, heads, keys, desk, out)


@njit
def one_by_one(kv, store, qkv, count, heads, out):
    scores = np.empty((2, store.counts.max() + count + 16), np.float32)
    for t in range(count):
        for head in range(heads[1]):
            look(kv, 0, store, t, head, qkv[t], heads, scores, out[t])


def memory(kv, rows, size, rng):
    """Keys and values (rows, size) of a store with their scales, and addresses of all."""
    floats = rng.normal(size=(2, rows, size)).astype(np.float32)
    scales = np.abs(floats).max(2) / np.float32(127)
    if kv == "int8":
        arrays = [*np.round(floats / scales[:, :, None]).astype(np.int8), *scales]
    else:
        arrays = [*floats.astype({"f16": np.float16, "f32": np.float32}[kv]), *scales]
    return arrays, [a.ctypes.data for a in arrays]


def tree(rows, pending, rng):
    """(rows, pending + rows) what each row of a random tree sees of uncommitted rows."""
    parents = [int(rng.integers(-1, p)) for p in range(pending + rows)]
    marks = np.zeros((rows, pending + rows), np.uint8)
    for i in range(rows):
        row = pending + i
        while row >= 0:
            marks[i, row], row = 1, parents[row]
    return marks


def chain(rows, pending):
    return np.tri(rows, pending + rows, pending, dtype=np.uint8)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("heads", [(4, 2, 128), (3, 1, 144)], ids=["pairs of 128", "three of 144"])
def test_rows_that_look_together_have_the_bits_of_rows_that_look_alone(kv, heads):
    rng = np.random.default_rng(0)
    q_heads, kv_heads, size = heads
    # three sessions: a chain behind a long past, a tree behind uncommitted rows, a single row; heads hold other rows
    marks = [chain(101, 7), tree(21, 5, rng), chain(1, 0)]
    committed = rng.integers(1, 200, (3, 1, kv_heads))
    committed[1] = 0
    pending = np.array([m.shape[1] - len(m) for m in marks])
    lengths = [len(m) for m in marks]
    count, room = sum(lengths), 400
    kept, addresses = zip(*(memory(kv, kv_heads * room, size, rng) for _ in marks), strict=True)
    visible = np.zeros((count, max(m.shape[1] for m in marks)), np.uint8)
    for start, m in zip(np.cumsum([0, *lengths]), marks, strict=False):
        visible[start : start + len(m), : m.shape[1]] = m
    store = Store(
        addresses=np.array(addresses),
        starts=np.tile(np.arange(kv_heads) * room, (3, 1, 1)),
        counts=committed + pending[:, None, None],
        pending=pending,
        owners=np.repeat(np.arange(3), lengths),
        ranks=np.concatenate([np.arange(n) for n in lengths]),
        visible=visible,
    )
    qkv = rng.normal(size=(count, q_heads * size)).astype(np.float32)
    got, wanted = np.zeros((2, count, q_heads * size), np.float32)
    together(Tag("kv", kv), store, qkv, count, heads, got)
    one_by_one(Tag("kv", kv), store, qkv, count, heads, wanted)
    assert np.isfinite(wanted).all()
    assert np.array_equal(got, wanted)
    # the tree's rows, against softmax in float64
    factors = [a.astype(np.float64)[:, None] if kv == "int8" else 1 for a in kept[1][2:]]
    keys, values = (a.astype(np.float64) * f for a, f in zip(kept[1][:2], factors, strict=True))
    for t in range(lengths[0], lengths[0] + lengths[1]):
        seen = np.flatnonzero(visible[t])
        for h in range(q_heads):
            rows = h // (q_heads // kv_heads) * room + seen
            scores = keys[rows] @ qkv[t, h * size : (h + 1) * size] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            # float32 sums of at most 26 weighted values of about one
            exact = weights @ values[rows] / weights.sum()
            assert np.allclose(got[t, h * size : (h + 1) * size], exact, atol=1e-5)


def test_what_a_row_does_not_see_cannot_spoil_it():
    marks, rng = tree(20, 0, np.random.default_rng(1)), np.random.default_rng(0)
    arrays, addresses = memory("f16", 32, 128, rng)
    hidden = int(np.flatnonzero(marks.sum(0) == 1)[0])  # a leaf: only it sees itself
    for array in arrays[:2]:
        array[hidden] = np.inf
    store = Store(
        np.array([addresses]), np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int64), np.zeros(1, np.int64),
        np.zeros(20, np.int64), np.arange(20), marks,
    )  # fmt: skip
    out = np.zeros((20, 256), np.float32)
    qkv = rng.normal(size=(20, 256)).astype(np.float32)
    together(Tag("kv", "f16"), store, qkv, 20, (2, 1, 128), out)
    finite = np.isfinite(out).all(1)
    assert not finite[hidden]
    assert finite.sum() == 19


# ---------------------------------------------------------------- whole prompts

MODEL = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny", "config": {"head_dim": 144}}}]
CASES = {
    "exact": {"format": "w4_g32", "activations": "exact", "kv": "f32"},
    "4-bit": {"format": "w4_g32", "activations": "int8", "kv": "f16"},
    "sparse": {"format": "nm14_w4", "head": "w8", "activations": "int8", "kv": "int8"},
}
"""As the options of test_numba_session.py, so that their machine code is compiled once."""


@cache
def build(case):
    torch.manual_seed(0)
    return Pipeline.from_plugins([*MODEL, {"numba": CASES[case]}], backend="numba")


def row_by_row(one, ids):
    first = one.prefill(Inputs(ids=ids[:1]))
    rows = [first]
    for token in ids[1:].tolist():
        rows.append(one.extend([token])[0][0])
        one.commit()
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_has_the_bits_of_its_rows_read_one_by_one(case):
    pipe = build(case)
    ids = plain_inputs(pipe, 37).ids
    alone = row_by_row(pipe.compiled.session(KeepAll()), ids)
    whole, chained = (pipe.compiled.session(KeepAll()) for _ in range(2))
    assert torch.equal(whole.prefill(Inputs(ids=ids)), alone[-1])
    chained.prefill(Inputs(ids=ids[:5]))
    assert torch.equal(chained.extend(ids[5:].tolist())[0], alone[5:])  # 32 uncommitted rows at once


@pytest.mark.parametrize("case", CASES)
def test_strips_of_another_size_give_the_same_bits(case, monkeypatch):
    pipe, results = build(case), []
    ids = plain_inputs(pipe, 300).ids
    for strip in (256, 64, 512):
        monkeypatch.setattr(passes, "STRIP", strip)
        one = pipe.compiled.session(KeepAll())
        results.append(torch.cat([one.prefill(Inputs(ids=ids))[None], one.extend([1])[0]]))
    assert torch.equal(results[1], results[0])
    assert torch.equal(results[2], results[0])


@pytest.mark.parametrize("case", CASES)
def test_a_large_tree_has_the_bits_of_its_paths_behind_heads_that_hold_other_rows(case):
    pipe = build(case)
    parents = [-1, 0, 0, 1, 1, 2, 3, 3, 5, 6, 7, 8, 9, -1, 13, 14]
    tokens = list(range(3, 3 + len(parents)))

    def opened():
        one = pipe.compiled.session(ReferencePolicy(rows=16).andes_cache_policy(model=pipe.model))
        one.prefill(plain_inputs(pipe, 70))
        # heads of a layer need not hold as many rows
        one.evict(1, [torch.arange(16), torch.tensor([0, 2, 3, 9, 11])])
        return one

    logits, hidden = opened().extend(tokens, parents)
    for leaf in (4, 10, 12, 15):
        path, row = [], leaf
        while row >= 0:
            path, row = [row, *path], parents[row]
        one = opened()
        assert len({*one.counts()[1]}) == 2
        for row in path:
            alone, alone_hidden = one.extend([tokens[row]])
            assert torch.equal(alone[0], logits[row])
            assert torch.equal(alone_hidden[0], hidden[row])


def test_sessions_that_share_a_pass_of_many_rows_have_the_bits_of_each_alone():
    pipe = build("4-bit")
    tokens = [list(range(20)), [5], list(range(9))]
    results = []
    for shared in (False, True):
        sessions = [pipe.compiled.session(KeepAll()) for _ in tokens]
        for number, one in enumerate(sessions):
            one.prefill(plain_inputs(pipe, 5 + 40 * number, seed=number))
        if shared:
            rows = pipe.compiled.step([Work(session=s, tokens=t) for s, t in zip(sessions, tokens, strict=True)])
            steps = [(one.logits, one.hidden) for one in rows]
        else:
            steps = [one.extend(new) for one, new in zip(sessions, tokens, strict=True)]
        results.append([part for step in steps for part in step])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_addresses_of_working_memory_start_on_cache_lines():
    @njit
    def starts(heads):
        return [address(desk) % 64 for desk in block_attention.desks(heads, 1000, 3)]

    assert starts((6, 2, 80)) == [0, 0, 0]
