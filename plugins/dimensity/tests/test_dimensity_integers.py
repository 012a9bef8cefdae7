"""Whole numbers of static int16: by hand, and beside plain division."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from andes_dimensity.codes import Matrix, ranges_of, refuse_unfit
from andes_dimensity.export import trained
from andes_dimensity.integers import attention_sums, codes_of, fraction, matrix_sums
from andes_dimensity.lint import lint
from andes_dimensity.options import Options
from andes_dimensity.reference import CodedLinear, DimensityBackend, steps_of

from andes_sdk.errors import ConfigError
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.types import Range

Q = "language_model.model.layers.0.self_attn.q_proj"
K = "language_model.model.layers.0.self_attn.k_proj"


def test_a_fraction_is_a_half_to_one():
    whole, exponent = fraction(np.array([0.75, 1.0, 3e-5, 7.5, 1 - 2**-40]))
    assert whole[:2].tolist() == [3 << 29, 1 << 30]
    assert exponent.tolist() == [0, 1, -15, 3, 1]
    assert ((whole >= 1 << 30) & (whole < 1 << 31)).all()


def test_sums_become_codes_by_hand():
    # 100 * 0.75 = 75; a half goes up: 10 * 0.25 = 2.5, -10 * 0.25 = -2.5; beyond int16 is clipped
    total = torch.tensor([[100, 10], [-100, -10], [1 << 20, 0]])
    assert matrix_sums(total, np.array([0.75, 0.25])).tolist() == [[75, 3], [-75, -2], [32767, 0]]
    assert attention_sums(torch.tensor([100, -100, 10, 1 << 20]), 0.25).tolist() == [25, -25, 3, 32767]
    # a scale of more than one is shifted before
    assert matrix_sums(torch.tensor([[3, 5]]), np.array([4.0, 2.5])).tolist() == [[12, 13]]


@pytest.mark.parametrize("sums", [lambda t, s: matrix_sums(t[:, None], np.array([s]))[:, 0], attention_sums])
def test_sums_are_near_to_division(sums):
    rng = np.random.default_rng(0)
    total = torch.from_numpy(rng.integers(-(1 << 28), 1 << 28, 5000))
    exact = total.double() * 1.1e-4
    assert (sums(total, 1.1e-4) - exact).abs().max() <= 1.0  # 16 bits of the scale lose up to half a code of 32767


def test_values_become_codes():
    codes = codes_of(torch.tensor([0.5, -0.5, 0.26, 1e9, -1e9]), 0.1)
    assert codes.tolist() == [5, -5, 3, 32767, -32768]


def test_a_static_product_by_hand():
    matrix = Matrix(np.array([[2, -3], [127, 1]], np.int8), np.array([0.5, 0.25], np.float32), 8, "rounded")
    layer = CodedLinear(matrix, None, "a16", None, (0.5, 0.25))
    # codes (4, 10): -22 * 0.5 * 0.5 / 0.25 = -22 codes; 518 * 0.5 * 0.25 / 0.25 = 259 codes
    assert layer(torch.tensor([[2.0, 5.1]])).tolist() == [[-5.5, 64.75]]
    with_bias = CodedLinear(matrix, torch.tensor([1.0, 0.0]), "a16", None, (0.5, 0.25))
    assert with_bias(torch.tensor([[2.0, 5.1]])).tolist() == [[-4.5, 64.75]]


def test_a_file_without_scales_of_a_layer_is_refused():
    with pytest.raises(ConfigError, match="no scales of it") as caught:
        steps_of({"model.layers.0.self_attn.q_proj.weight.in": 0.1}, Q)
    assert caught.value.who == Q


def scales_of(pipe, step):
    """Scales of a file, wide enough for a tiny model."""
    text, out = pipe.model.text, {}
    for n in range(text.layers):
        at = f"model.layers.{n}."
        for role in ("q", "k", "v", "o"):
            out |= {f"{at}self_attn.{role}_proj.weight.{side}": step for side in ("in", "out")}
        for role in ("gate", "up", "down"):
            out |= {f"{at}mlp.{role}_proj.weight.{side}": step for side in ("in", "out")}
        out |= {f"{at}{role}": step for role in ("query", "keys", "scores", "values", "mixed")}
        out[f"{at}weights"] = 1 / 32767
    return out | {"lm_head.weight.in": step, "lm_head.weight.out": step}


def test_static_sessions_are_near_to_floats_and_finer_scales_nearer(pipe):
    answers = []
    for steps in ({}, scales_of(pipe, 2e-3), scales_of(pipe, 2e-4)):
        options = Options(rows=64, prompt=16, activations="a16" if steps else "float")
        compiled = DimensityBackend(options, None, steps).compile(pipe.model, device="cpu", dtype="float32")
        session = compiled.session(KeepAll())
        session.extend([5, 9, 40])
        session.commit()
        answers.append(session.extend([7, 8])[0])
    plain, coarse, fine = answers
    far, near = ((one - plain).abs().max() / plain.abs().max() for one in (coarse, fine))
    assert near < 0.02
    assert near < far


def test_ranges_of_a_packed_file_count_and_those_of_modules_come_first(pipe, grid):
    pipe.model.set_submodule(Q, grid(pipe.model.get_submodule(Q), 0.25))
    stored = {Q: Range(bits=16, scale=0.5), K: Range(bits=16, scale=0.125)}
    artefact = SimpleNamespace(ranges=stored)
    assert ranges_of(pipe.model, artefact)[Q].scale == 0.25
    both = SimpleNamespace(model=pipe.model, artefact=artefact)
    names = [f"{name.removeprefix('language_model.')}.weight" for name in (Q, K)]
    assert trained(both) == dict(zip(names, (0.25, 0.125), strict=True))


def test_lint_counts_trained_ranges(pipe, grid):
    pipe.model.set_submodule(Q, grid(pipe.model.get_submodule(Q), 0.25))
    told = {one.layer: one.what for one in lint(pipe, Options(rows=64, prompt=16)).findings}
    matrices = len(pipe.model.llm.linears())
    assert told["language_model"].startswith(f"{matrices - 1} of {matrices} matrices")


@pytest.mark.parametrize("one", [Range(bits=8, scale=0.5), Range(bits=16, scale=0.5, zero=3)])
def test_ranges_that_int16_would_not_clip_as_training_did_are_refused(one, pipe):
    with pytest.raises(ConfigError, match="does not fit") as caught:
        trained(SimpleNamespace(model=pipe.model, artefact=SimpleNamespace(ranges={K: one})))
    assert caught.value.who == K
    refuse_unfit("layer", Range(bits=8, scale=0.5), 16)  # the reference clips where training did
