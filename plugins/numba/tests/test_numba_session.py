from functools import cache

import pytest
import torch
from andes_packing.formats import find
from numba import get_num_threads
from numba.core import config

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable, SessionError
from andes_sdk.runtime.generation import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.reference import (
    ReferenceEncoder,
    ReferenceLanguageModel,
    ReferencePolicy,
    ReferenceProjector,
    ReferenceTokenizer,
)
from andes_sdk.types import Inputs, Work

# a head of 144 columns needs both loops of attention: eight vectors at a time, and one
MODEL = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny", "config": {"head_dim": 144}}}]
EXACT = {"format": "w4_g32", "activations": "exact", "kv": "f32"}
INT8 = {"format": "w4_g32", "activations": "int8", "kv": "f16"}
SPARSE = {"format": "nm14_w4", "head": "w8", "activations": "int8", "kv": "int8"}


def on_grid(pipe, options):
    """Give the model weights that the format holds exactly, so that packing rounds nothing."""
    torch.set_num_threads(1)
    lm = pipe.model.language_model
    with torch.no_grad():
        for name, weight in lm.named_parameters():
            if weight.ndim == 2:
                # a wider spread than at initialisation: attention and gates then do more than average
                layout = find(options.get("head", options["format"]) if "embed" in name else options["format"])
                weight.copy_(torch.from_numpy(layout.quantise(3 * weight.numpy()).weights()))
    return pipe


@cache
def build(**options):
    return on_grid(Pipeline.from_plugins([*MODEL, {"numba": options}], backend="numba"), options)


@cache
def reference(**options):
    return on_grid(Pipeline.from_plugins(MODEL), options)


def relative(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


def talk(pipe, policy=None):
    """Logits and hidden rows of a prompt with a picture, a tree, and a token after one of its paths."""
    session = pipe.compiled.session(policy or KeepAll())
    first = session.prefill(pipe.prepare(conversation(0)))
    tree, hidden = session.extend([1, 2, 3, 4, 5], [-1, 0, 0, -1, 2])
    session.commit([0, 2, 4])
    last, _ = session.extend([6])
    session.commit()
    return torch.cat([first[None], tree, last]), hidden, session


def test_with_exact_activations_logits_are_those_of_torch_on_the_dequantised_weights():
    logits, hidden, _ = talk(build(**EXACT))
    wanted, wanted_hidden, _ = talk(reference(**EXACT))
    # both add float32 numbers, in another order
    assert relative(logits, wanted) < 1e-4
    assert relative(hidden, wanted_hidden) < 1e-4


@pytest.mark.parametrize(("options", "limit"), [(INT8, 0.05), (SPARSE, 0.1)], ids=["4-bit", "sparse"])
def test_with_int8_activations_logits_are_close_to_torch(options, limit):
    logits, _, _ = talk(build(**options))
    # steps of 1 / 127 of the largest activation of a group, in every product of two layers
    assert relative(logits, talk(reference(**options))[0]) < limit


@pytest.mark.parametrize("options", [EXACT, INT8, SPARSE], ids=["exact", "int8", "sparse"])
def test_a_path_through_a_tree_has_the_bits_of_the_same_path_as_a_chain(options):
    pipe = build(**options)
    logits, hidden, _ = talk(pipe)
    for path, rows in (([1, 3, 5], [0, 2, 4]), ([1, 2], [0, 1]), ([4], [3])):
        session = pipe.compiled.session(KeepAll())
        session.prefill(pipe.prepare(conversation(0)))
        for token, row in zip(path, rows, strict=True):
            alone, alone_hidden = session.extend([token])
            session.commit()
            assert torch.equal(alone[0], logits[1 + row])
            assert torch.equal(alone_hidden[0], hidden[row])
        if len(path) == 3:
            assert torch.equal(session.extend([6])[0][0], logits[-1])


def test_a_prompt_gives_the_same_bits_whether_it_is_read_at_once_or_in_pieces():
    pipe = build(**INT8)
    ids = plain_inputs(pipe, 300).ids  # more than one strip
    whole = pipe.compiled.session(KeepAll()).prefill(Inputs(ids=ids))
    session = pipe.compiled.session(KeepAll())
    session.prefill(Inputs(ids=ids[:291]))
    session.prefill(Inputs(ids=ids[291:295]))
    logits, _ = session.extend(ids[295:].tolist())
    assert torch.equal(logits[-1], whole)


@pytest.mark.skipif(config.NUMBA_NUM_THREADS < 2, reason="Numba may start one thread only")
def test_the_number_of_threads_does_not_change_a_bit():
    two, one = build(**INT8), build(**INT8, threads=1)
    assert two.compiled.threads > one.compiled.threads == 1
    before = get_num_threads()
    assert torch.equal(talk(two)[0], talk(one)[0])
    assert get_num_threads() == before


def test_several_sessions_together_have_the_bits_of_each_alone():
    pipe = build(**INT8)
    tokens, results = [[1], [2, 3, 4], [5]], []
    for together in (False, True):
        sessions = [pipe.compiled.session(KeepAll()) for _ in tokens]
        for number, session in enumerate(sessions):
            session.prefill(plain_inputs(pipe, 5 + 7 * number, seed=number))
        sessions[2].extend([7, 8], [-1, -1])  # rows that are pending, and one of them not seen
        for _ in range(2):
            if together:
                rows = pipe.compiled.step([Work(session=s, tokens=t) for s, t in zip(sessions, tokens, strict=True)])
                steps = [(one.logits, one.hidden) for one in rows]
            else:
                steps = [session.extend(new) for session, new in zip(sessions, tokens, strict=True)]
        results.append([part for step in steps for part in step])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_rows_rolled_back_leave_nothing_behind():
    pipe = build(**INT8)
    session, clean = (pipe.compiled.session(KeepAll()) for _ in range(2))
    for one in (session, clean):
        one.prefill(plain_inputs(pipe, 9))
    session.extend([5, 6, 7])
    session.rollback()
    assert session.length == 9
    assert torch.equal(session.extend([1])[0], clean.extend([1])[0])
    assert session.stats.kv_bytes == 2 * 2 * 9 * 2 * 144 * 2  # layers, heads, rows, keys and values, numbers, bytes


def test_bytes_of_int8_rows_are_counted_with_their_scales():
    pipe = build(**SPARSE)
    session = pipe.compiled.session(KeepAll())
    session.prefill(plain_inputs(pipe, 9))
    assert session.stats.kv_bytes == 2 * 2 * 9 * 2 * (144 + 4)


def test_eviction_keeps_the_rows_that_torch_keeps_and_gives_memory_back():
    logits = []
    for pipe in (build(**EXACT), reference(**EXACT)):
        policy = ReferencePolicy(rows=16).andes_cache_policy(model=pipe.model)
        session = pipe.compiled.session(policy)
        first = session.prefill(plain_inputs(pipe, 400))
        second, _ = session.extend([1, 2, 3], [-1, 0, 0])
        session.commit([0, 2])
        logits.append(torch.cat([first[None], second, session.extend([4])[0]]))
        session.commit()
        assert session.stats.rows == ((16, 16), (16, 16))
        assert session.length == 403
        assert session.stats.kv_bytes == 2 * 2 * 16 * 2 * 144 * 4
    assert relative(logits[0], logits[1]) < 1e-4


def test_a_policy_sees_keys_values_positions_and_queries_as_torch_shows_them():
    class Look:
        name, window, taps, replays = "look", 4, (), False

        def __init__(self):
            self.seen = []

        def budget(self, seen):
            return None

        def open(self, state=None):
            return self

        def state(self):
            return {}

        def due(self, seen, held, reading):
            return True

        def keep(self, cache):
            for layer in cache.layers:
                self.seen.append((layer.index, *map(list, (layer.keys, layer.values, layer.positions)), layer.queries))
            return [None] * len(cache.layers)

    policies = [Look(), Look()]
    for pipe, policy in zip((build(**EXACT), reference(**EXACT)), policies, strict=True):
        session = pipe.compiled.session(policy)
        session.prefill(plain_inputs(pipe, 7))
        session.extend([1, 2, 3, 4], [-1, 0, 0, 2])
        session.commit([0, 2, 3])
    assert len(policies[0].seen) == len(policies[1].seen) == 4
    for ours, torchs in zip(policies[0].seen, policies[1].seen, strict=True):
        assert ours[0] == torchs[0]
        for got, wanted in zip((*ours[1], *ours[2], ours[4]), (*torchs[1], *torchs[2], torchs[4]), strict=True):
            assert got.shape == wanted.shape
            assert torch.allclose(got, wanted, atol=1e-4 * float(wanted.abs().max()))
        assert all(torch.equal(got, wanted) for got, wanted in zip(ours[3], torchs[3], strict=True))


def test_whole_answers_are_those_of_torch():
    options = GenerationOptions(max_tokens=24)
    assert (
        build(**EXACT).generate(conversation(0), options).tokens
        == reference(**EXACT).generate(conversation(0), options).tokens
    )


def test_a_closed_session_refuses_and_forgets():
    pipe = build(**INT8)
    session = pipe.compiled.session(KeepAll())
    session.prefill(plain_inputs(pipe, 5))
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.extend([1])
    assert session.stats.kv_bytes == 0


def test_facts_say_what_runs_where():
    facts = build(**SPARSE).compiled.facts()
    assert facts["format"].startswith("nm14_w4, head w8: ")
    assert facts["activations"] == "int8"
    assert facts["kv"] == "int8"
    assert facts["vision"].startswith("compiled, ")
    assert facts["on torch"].startswith("embedding")


def test_a_model_that_describes_nothing_is_refused():
    parts = [ReferenceEncoder(), ReferenceProjector(), ReferenceLanguageModel(), ReferenceTokenizer()]
    pipe = Pipeline.from_plugins([*parts, "numba"], backend="numba")
    with pytest.raises(BackendUnavailable, match=r"it has no blueprint\(\)"):
        pipe.session()


def test_rows_that_no_memory_can_hold_are_refused_and_change_nothing():
    session = build(**INT8).compiled.session(KeepAll())
    session.prefill(Inputs(ids=torch.arange(5)))
    before = session.store.starts.tolist(), session.store.counts.tolist(), session.store.addresses

    with pytest.raises(SessionError, match="no memory for"):
        session.store.reserve(1 << 40)

    assert (session.store.starts.tolist(), session.store.counts.tolist(), session.store.addresses) == before
    session.extend([1])
    session.commit()
    assert session.length == 6


def test_a_closed_session_holds_nothing():
    session = build(**INT8).compiled.session(KeepAll())
    session.prefill(Inputs(ids=torch.arange(5)))
    session.extend([1, 2])
    session.close()
    assert session.stats.kv_bytes == 0
    assert not any(n for layer in session.stats.rows for n in layer)


def test_what_enters_layers_is_shown_by_few_rows_to_the_bits_of_many_and_near_those_of_torch():
    pipe = build(**INT8)
    taps = (0, 1, pipe.model.text.layers)
    compiled = pipe._backend.compile(pipe.model, device="cpu", dtype="float32", taps=taps)
    exact = reference(**INT8)._backend.compile(reference(**INT8).model, device="cpu", dtype="float32", taps=taps)
    tokens, shown = [5 * n % 90 for n in range(20)], {}
    for name, one, sizes in (("many", compiled, [20]), ("few", compiled, [1, 5, 1, 13]), ("torch", exact, [20])):
        session, parts, start = one.session(KeepAll()), [], 0
        for size in sizes:
            parts.append(one.step([Work(session=session, tokens=tokens[start : start + size])])[0].features)
            session.commit()
            start += size
        shown[name] = torch.cat(parts)
    assert shown["few"].shape == (20, len(taps), pipe.model.text.width)
    assert torch.equal(shown["few"], shown["many"])
    assert relative(shown["few"], shown["torch"]) < 0.1
    assert relative(shown["few"][:, 0], shown["torch"][:, 0]) == 0
