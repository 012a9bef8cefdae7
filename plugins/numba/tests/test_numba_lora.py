from functools import cache

import pytest
import torch

from andes_sdk import Pipeline
from andes_sdk.errors import ConfigError, DuplicateName, SessionError
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.types import Adapter, LowRank, Work

# an inner size that fills no block of sixteen, and ranks that fill no vector
MODEL = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny", "config": {"intermediate_size": 100}}}]
EXACT = {"format": "f16", "activations": "exact", "kv": "f32"}
INT8 = {"format": "w4_g32", "activations": "int8", "kv": "f16"}
EVERY = {"q": (64, 48), "k": (32, 48), "v": (32, 48), "o": (48, 64)}
WIDE = {"gate": (100, 48), "up": (100, 48), "down": (48, 100)}


def adapter(name, rank, seed, roles=("q", "k", "v", "o", "gate", "up", "down")):
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for n in range(2):
        for part, shapes in (("self_attn", EVERY), ("mlp", WIDE)):
            for role, (rows, columns) in shapes.items():
                if role in roles:
                    a, b = (0.3 * torch.randn(*s, generator=random) for s in ((rank, columns), (rows, rank)))
                    layers[f"model.layers.{n}.{part}.{role}_proj"] = LowRank(a=a, b=b, scale=0.7)
    return Adapter(name=name, layers=layers)


ADAPTERS = [adapter("wide", 5, 1), adapter("narrow", 2, 2, ("v", "up")), adapter("gates", 17, 3, ("gate",))]
NAMES = [None, "wide", "narrow", "gates"]


@cache
def build(**options):
    torch.set_num_threads(1)
    plugins = [*MODEL, {"numba": options}] if options else MODEL
    pipe = Pipeline.from_plugins(plugins, backend="numba" if options else "torch", seed=3)
    with torch.no_grad():
        for weight in pipe.model.language_model.parameters():
            weight.copy_((3 * weight if weight.ndim == 2 else weight).half())  # f16 holds it exactly
    for one in ADAPTERS:
        pipe.compiled.add_adapter(one)
    return pipe


def talk(pipe, name):
    """Logits and hidden rows of a prompt with a picture, a tree, and a token after one of its paths."""
    session = pipe.compiled.session(KeepAll())
    session.adapter = name
    first = session.prefill(pipe.prepare(conversation(0)))
    tree, hidden = session.extend([1, 2, 3, 4, 5], [-1, 0, 0, -1, 2])
    session.commit([0, 2, 4])
    last, _ = session.extend([6])
    return torch.cat([first[None], tree, last]), hidden


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch_with_the_same_adapter(name):
    (logits, hidden), (wanted, wanted_hidden) = (talk(pipe, name) for pipe in (build(**EXACT), build()))
    # both add float32 numbers, in another order
    assert float((logits - wanted).abs().max() / wanted.abs().max()) < 1e-4
    assert float((hidden - wanted_hidden).abs().max() / wanted_hidden.abs().max()) < 1e-4


def test_adapters_differ():
    results = [talk(build(**EXACT), name)[0] for name in NAMES]
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(results) for b in results[:i])


def test_a_path_through_a_tree_has_the_bits_of_the_same_path_as_a_chain():
    pipe = build(**INT8)
    logits, hidden = talk(pipe, "wide")
    session = pipe.compiled.session(KeepAll())
    session.adapter = "wide"
    session.prefill(pipe.prepare(conversation(0)))
    for token, row in zip([1, 3, 5], [0, 2, 4], strict=True):
        alone, alone_hidden = session.extend([token])
        session.commit()
        assert torch.equal(alone[0], logits[1 + row])
        assert torch.equal(alone_hidden[0], hidden[row])
    assert torch.equal(session.extend([6])[0][0], logits[-1])


def test_sessions_with_different_adapters_in_one_pass_have_the_bits_of_each_alone():
    pipe = build(**INT8)
    tokens, results = [[1], [2, 3, 4], [5], [6, 7]], []
    for together in (False, True):
        sessions = [pipe.compiled.session(KeepAll()) for _ in tokens]
        for number, (session, name) in enumerate(zip(sessions, NAMES, strict=True)):
            session.adapter = name
            session.prefill(plain_inputs(pipe, 5 + 7 * number, seed=number))
        for _ in range(2):
            if together:
                rows = pipe.compiled.step([Work(session=s, tokens=t) for s, t in zip(sessions, tokens, strict=True)])
                steps = [(one.logits, one.hidden) for one in rows]
            else:
                steps = [session.extend(new) for session, new in zip(sessions, tokens, strict=True)]
        results.append([part for step in steps for part in step])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_adapters_that_come_later_and_threads_change_no_bit():
    pipe = Pipeline.from_plugins([*MODEL, {"numba": {**INT8, "threads": 1}}], backend="numba", seed=3)
    pipe.compiled.add_adapter(ADAPTERS[1])
    before = talk(pipe, "narrow")[0]
    pipe.compiled.add_adapter(ADAPTERS[0])
    assert torch.equal(talk(pipe, "narrow")[0], before)
    two = Pipeline.from_plugins([*MODEL, {"numba": INT8}], backend="numba", seed=3)
    two.compiled.add_adapter(ADAPTERS[1])
    assert torch.equal(talk(two, "narrow")[0], before)


def test_unknown_names_second_names_and_other_layers_are_refused():
    pipe = build(**INT8)
    with pytest.raises(SessionError, match="no adapter 'wine'"):
        pipe.compiled.session(KeepAll()).adapter = "wine"
    with pytest.raises(DuplicateName, match="wide"):
        pipe.compiled.add_adapter(ADAPTERS[0])
    pair = LowRank(a=torch.zeros(1, 48), b=torch.zeros(512, 1), scale=1.0)
    with pytest.raises(ConfigError, match=r"(?s)adapter 'head': does not fit.*lm_head: no linear layer"):
        pipe.compiled.add_adapter(Adapter(name="head", layers={"lm_head": pair}))


def test_matrices_of_other_shapes_are_refused_with_the_shapes_that_fit():
    pipe = build(**INT8)
    # 47 and 33 would fill up to the same blocks of sixteen as 48 and 32
    pair = LowRank(a=torch.zeros(3, 47), b=torch.zeros(33, 3), scale=1.0)
    with pytest.raises(ConfigError, match="does not fit") as error:
        pipe.compiled.add_adapter(Adapter(name="odd", layers={"model.layers.1.self_attn.k_proj": pair}))
    assert "k_proj: a is [3, 47], not [3, 48]" in error.value.why
    assert "k_proj: b is [33, 3], not [32, 3]" in error.value.why
    with pytest.raises(SessionError, match="no adapter 'odd'"):
        pipe.compiled.session(KeepAll()).adapter = "odd"


def test_a_removed_adapter_leaves_the_others_their_bits():
    pipe = Pipeline.from_plugins([*MODEL, {"numba": INT8}], backend="numba", seed=3)
    for one in ADAPTERS:
        pipe.compiled.add_adapter(one)
    wide, narrow, gates = (talk(pipe, name)[0] for name in NAMES[1:])
    session = pipe.compiled.session(KeepAll())
    session.adapter = "wide"
    with pytest.raises(SessionError, match="1 open sessions use it"):
        pipe.compiled.remove_adapter("wide")
    session.adapter = None
    pipe.compiled.remove_adapter("wide")
    with pytest.raises(ConfigError, match="no adapter 'wide'"):
        pipe.compiled.remove_adapter("wide")
    assert torch.equal(talk(pipe, "narrow")[0], narrow)
    assert torch.equal(talk(pipe, "gates")[0], gates)
    pipe.compiled.add_adapter(ADAPTERS[0])
    assert torch.equal(talk(pipe, "wide")[0], wide)


def coded(one, name):
    """An adapter as int8, with a scale for every row."""
    layers = {}
    for layer, low in one.layers.items():
        sizes = [m.abs().amax(1) / 127 for m in (low.a, low.b)]
        a, b = (torch.round(m / s[:, None]).to(torch.int8) for m, s in zip((low.a, low.b), sizes, strict=True))
        layers[layer] = LowRank(a=a, b=b, scale=low.scale, a_scale=sizes[0], b_scale=sizes[1])
    return Adapter(name=name, layers=layers)


def floats_of(one, name):
    layers = {
        layer: LowRank(a=a, b=b, scale=low.scale) for layer, low in one.layers.items() for a, b in [low.matrices()]
    }
    return Adapter(name=name, layers=layers)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_int8_matrices_give_what_the_numbers_they_stand_for_give(which):
    codes = coded(ADAPTERS[which], f"int8 {which}")
    floats = floats_of(codes, f"floats {which}")
    exact, torchs = build(**EXACT), build()
    for pipe in (exact, torchs):
        for one in (codes, floats):
            pipe.compiled.add_adapter(one)
    assert torch.equal(talk(torchs, codes.name)[0], talk(torchs, floats.name)[0])
    logits, wanted = talk(exact, codes.name)[0], talk(torchs, floats.name)[0]
    assert float((logits - wanted).abs().max() / wanted.abs().max()) < 1e-4  # another order of sums
    assert not torch.allclose(wanted, talk(torchs, None)[0], atol=1e-2)


def test_int8_beside_floats_has_the_bits_of_each_alone_and_a_quarter_of_the_bytes():
    pipe = Pipeline.from_plugins([*MODEL, {"numba": INT8}], backend="numba", seed=3)
    for one in (ADAPTERS[0], coded(ADAPTERS[0], "int8")):
        pipe.compiled.add_adapter(one)
    results = []
    for together in (False, True):
        sessions = [pipe.compiled.session(KeepAll()) for _ in range(3)]
        for session, name in zip(sessions, (None, "wide", "int8"), strict=True):
            session.adapter = name
            session.prefill(plain_inputs(pipe, 5, seed=1))
        if together:
            rows = pipe.compiled.step([Work(session=s, tokens=[1, 2]) for s in sessions])
            results.append([one.logits for one in rows])
        else:
            results.append([s.extend([1, 2])[0] for s in sessions])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    plain, floats, codes = results[0]
    assert float((codes - floats).abs().max()) < 0.05 * float((plain - floats).abs().max())
    half, byte = (pipe.compiled.adapters.nbytes(name) for name in ("wide", "int8"))
    numbers = half // 2
    scales = byte - numbers  # float32, one for each row of A and, padded, of B
    assert scales == 2 * 4 * (7 * 5 + 64 + 32 + 32 + 48 + 112 + 112 + 48)


def test_other_bases_are_refused():
    pipe = build(**INT8)
    with pytest.raises(ConfigError, match="another base"):
        pipe.compiled.add_adapter(Adapter(name="based", layers=ADAPTERS[1].layers, base="a" * 64))
