"""Masks and one-shot methods against small numpy references that are derived here, and as compressors."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from andes_compression.compress import recipe_for, write
from andes_packing import Artefact
from andes_packing.formats import find
from andes_packing.modules import attach
from andes_sparsity import Sparsity
from andes_sparsity.calibration import Calibration
from andes_sparsity.masks import exact, keep_mask, matrices
from andes_sparsity.pruning import METHODS, magnitude, sparsegpt, wanda
from numpy.typing import NDArray
from torch import Tensor

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError, TrainingError
from andes_sdk.types import Compressed

DATA = str(Sparsity.testing["data"])
MODEL: list[Any] = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
PATTERNS = [(1, 4), (2, 4), (2, 8)]
Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def pipeline(**options: Any) -> Pipeline:
    return Pipeline.from_plugins([*MODEL, {"sparsity": {"data": DATA, **options}}], seed=1)


def noise(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape)


def best(scores: Floats, n: int) -> list[int]:
    """The n positions of one block with the largest sum of scores, tried one by one."""
    return list(max(combinations(range(len(scores)), n), key=lambda c: scores[list(c)].sum()))


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_a_mask_keeps_the_best_of_every_block(n: int, m: int) -> None:
    scores = np.abs(noise(5, 3 * m))
    mask = keep_mask(torch.from_numpy(scores), n, m).numpy()
    for row in range(5):
        for start in range(0, 3 * m, m):
            assert list(np.flatnonzero(mask[row, start : start + m])) == best(scores[row, start : start + m], n)


def test_of_equals_the_earlier_stay_as_the_formats_have_it() -> None:
    weight = np.array([[1, 1, 1, 1, 0, 2, -2, 0], [0, 0, 0, 0, 3, 3, 3, -3]], np.float32)
    for name, n, m in (("nm14_w4", 1, 4), ("nm28_w4", 2, 8)):
        mask = keep_mask(torch.from_numpy(weight).abs(), n, m).numpy()
        codes = find(name).quantise(weight).values != 0
        assert np.array_equal(codes, mask & (weight != 0))
    assert keep_mask(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


def by_hand_wanda(weight: Floats, inputs: Floats, n: int, m: int) -> Floats:
    """|w| times the norm of the column's inputs, block by block."""
    out = np.zeros_like(weight)
    norms = np.array([np.sqrt((inputs[:, c] ** 2).sum()) for c in range(weight.shape[1])])
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], m):
            for at in best(np.abs(weight[row, start : start + m]) * norms[start : start + m], n):
                out[row, start + at] = weight[row, start + at]
    return out


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_wanda_weighs_inputs(n: int, m: int) -> None:
    weight, inputs = noise(6, 3 * m), noise(40, 3 * m, seed=1) * np.linspace(0.1, 4, 3 * m)
    got = wanda(torch.from_numpy(weight), torch.from_numpy((inputs**2).sum(0)), n, m).numpy()
    assert np.array_equal(got, by_hand_wanda(weight, inputs, n, m))
    assert not np.array_equal(got, magnitude(torch.from_numpy(weight), n, m).numpy())


def by_hand_obs(weight: Floats, hessian: Floats, n: int, m: int) -> Floats:
    """Optimal brain surgeon along the columns, with the inverse of what is left computed anew for each column.

    Removing w_c from a quadratic loss costs w_c² / [H⁻¹]_cc. The best change of the others is -w_c [H⁻¹]_c / [H⁻¹]_cc
    (Hassibi and Stork, eq. 5). H is that of the columns that may still change: c and those right of it.
    """
    w = weight.copy()
    columns = w.shape[1]
    inverses = [np.linalg.inv(hessian[c:, c:]) for c in range(columns)]
    kept: dict[int, list[int]] = {}
    for c in range(columns):
        for row in range(len(w)):
            if c % m == 0:
                costs = np.array([w[row, c + j] ** 2 / inverses[c + j][0, 0] for j in range(m)])
                kept[row] = [c + j for j in best(costs, n)]
            if c not in kept[row]:
                w[row, c:] -= w[row, c] * inverses[c][0] / inverses[c][0, 0]
                w[row, c] = 0.0
    return w


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("block", [8, 16, 128])
def test_sparsegpt_is_the_optimal_brain_surgeon_whatever_the_block(n: int, m: int, block: int) -> None:
    weight = noise(5, 24)
    inputs = noise(60, 24, seed=1) @ noise(24, 24, seed=2)  # correlated
    gram = inputs.T @ inputs
    hessian = gram + 0.01 * np.diag(gram).mean() * np.eye(24)
    got = sparsegpt(torch.from_numpy(weight), torch.from_numpy(gram), n, m, block=block)
    np.testing.assert_allclose(got.numpy(), by_hand_obs(weight, hessian, n, m), rtol=1e-8, atol=1e-10)
    assert exact(got, n, m)
    # the error of outputs is what it lowers, below that of magnitude alone
    plain = magnitude(torch.from_numpy(weight), n, m).numpy()
    errors = [np.square((w - weight) @ inputs.T).sum() for w in (got.numpy(), plain)]
    assert errors[0] < errors[1]


def test_columns_that_never_get_an_input_become_zero() -> None:
    weight, inputs = torch.from_numpy(noise(3, 8)), torch.from_numpy(noise(20, 8, seed=1))
    inputs[:, 2] = 0.0
    got = sparsegpt(weight, inputs.T @ inputs, 2, 4)
    assert bool((got[:, 2] == 0).all())
    assert bool(got.isfinite().all())
    assert exact(got, 2, 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_a_compressed_model_has_the_pattern_and_the_rest_is_as_it_was(method: str, n: int, m: int) -> None:
    pipe = pipeline()
    before = {name: t.clone() for name, t in pipe.model.state_dict().items()}
    made = pipe.compress(method, n=n, m=m)
    pruned = {f"{name}.weight" for name in matrices(pipe.model, m)}
    assert len(pruned) == 14
    for name, tensor in pipe.model.state_dict().items():
        if name in pruned:
            assert exact(tensor, n, m)
        else:
            assert torch.equal(tensor, before[name])
    assert made.report["sparsity"] == pytest.approx(1 - n / m, abs=1e-3)
    assert made.report["pattern"] == f"{n}:{m}"
    assert (made.report["tokens"] > 0) == (method != "magnitude")


def test_a_later_layer_sees_what_the_pruned_ones_before_it_send_on() -> None:
    pipe, plain = pipeline(), pipeline()
    pipe.compress("wanda", n=1, m=4)
    for source, wanted in ((pipe, True), (plain, False)):  # inputs of layer 1 from a pruned and from a dense layer 0
        calibration = Calibration.of(source.model, DATA, 128, 2048, "test")
        seen: dict[str, Tensor] = {}

        def see(name: str, rows: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen[name] = seen.get(name, torch.zeros(())) + rows.double().square().sum(0)

        name = "language_model.model.layers.1.self_attn.q_proj"
        calibration.show(1, {name: source.model.get_submodule(name)}, see)  # type: ignore[dict-item]
        old = plain.model.state_dict()[f"{name}.weight"]
        got = wanda(old, seen[name].float(), 1, 4)
        assert torch.equal(got, pipe.model.state_dict()[f"{name}.weight"]) == wanted


def test_on_what_a_matrix_is_given_sparsegpt_is_nearest_to_the_dense_one() -> None:
    plain = pipeline(n=2)
    name, rows = "language_model.model.layers.0.self_attn.q_proj", []
    calibration = Calibration.of(plain.model, DATA, 128, 2048, "test")
    calibration.show(0, {name: plain.model.get_submodule(name)}, lambda _, x: rows.append(x))  # type: ignore[dict-item]
    inputs, old = torch.cat(rows), plain.model.state_dict()[f"{name}.weight"]
    assert len(inputs) == calibration.tokens
    off = {}
    for method in METHODS:
        pipe = pipeline(n=2)
        pipe.compress(method)
        off[method] = float((inputs @ (pipe.model.state_dict()[f"{name}.weight"] - old).T).square().sum())
    assert off["sparsegpt"] < min(off["wanda"], off["magnitude"])


def test_packed_it_keeps_the_mask(tmp_path: Path) -> None:
    pipe = pipeline()
    made = pipe.compress("sparsegpt")
    weights = {name: module.weight.detach().numpy().copy() for name, (_, module) in matrices(pipe.model, 4).items()}
    write(pipe, made, tmp_path / "model.andes", recipe_for(pipe, made, "nm14_w4", head="w8"))
    artefact = Artefact.open(tmp_path / "model.andes")
    for name, weight in weights.items():
        assert not (artefact.array(f"{name}.weight") != 0)[weight == 0].any()


@pytest.mark.parametrize(
    ("options", "call", "message"),
    [
        ({"roles": ["q", "z"]}, {}, "no matrix has the role 'z'"),
        ({}, {"m": 5}, "columns are no multiple of 5"),
        ({}, {"n": 4}, "are all of them"),
        ({}, {"n": 0}, "n cannot be 0"),
        ({}, {"n": "two"}, "n cannot be 'two'"),
        ({}, {"speed": 1}, "no option 'speed'"),
        ({"data": ""}, {}, "needs calibration data"),
    ],
)
def test_what_cannot_be_pruned_is_told_and_left_alone(
    options: dict[str, Any], call: dict[str, Any], message: str
) -> None:
    pipe = pipeline(**options)
    before = {name: t.clone() for name, t in pipe.model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        pipe.compress("wanda", **call)
    assert all(torch.equal(t, before[name]) for name, t in pipe.model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4}, "are all of them"),
        ({"m": 1}, "'m' must be >= 2"),
        ({"ramp": 0.8, "hold": 0.5}, "never come to rest"),
        ({"hold": 0.0}, "'hold' must be > 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        pipeline(**options)
    assert message in str(caught.value)


def test_data_that_is_missing_or_no_conversation_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read"):
        pipeline(data=str(tmp_path / "none.jsonl")).compress("wanda")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "?"}) + "\n")
    with pytest.raises(TrainingError, match="is not a sample"):
        pipeline(data=str(tmp_path / "bad.jsonl")).compress("sparsegpt")


def test_a_model_whose_weights_are_packed_is_refused(tmp_path: Path) -> None:
    pipe = pipeline()
    write(pipe, Compressed(), tmp_path / "model.andes", recipe_for(pipe, Compressed(), "w8"))
    model = attach(pipe.meta_model(), Artefact.open(tmp_path / "model.andes"), dtype="float32")
    with pytest.raises(ConfigError, match="no plain linear layer") as caught:
        pipe.pick("compressors", "magnitude").compress(model)
    assert caught.value.who == "language_model.model.layers.0.self_attn.q_proj"


def test_roles_choose_matrices_and_options_reach_the_compressors() -> None:
    pipe = pipeline(roles=["up", "gate"], n=2, m=8)
    assert pipe.compress("magnitude").report["matrices"] == 4
    assert exact(pipe.model.state_dict()["language_model.model.layers.1.mlp.up_proj.weight"], 2, 8)
    assert not exact(pipe.model.state_dict()["language_model.model.layers.1.mlp.down_proj.weight"], 2, 8)
    assert "2:8 in up, gate" in str(pipe.explain())


@pytest.mark.parametrize(
    ("n", "m", "form", "fits"),
    [(2, 4, "nm14_w4", False), (2, 8, "nm14_w4", False), (1, 4, "nm28_w4", True), (2, 4, "w4_g32", True)],
)
def test_a_format_that_would_prune_further_is_refused(n: int, m: int, form: str, fits: bool, tmp_path: Path) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"sparsity": {"n": n, "m": m}}], seed=1)
    made, out = pipe.compress("magnitude"), tmp_path / "m.andes"
    formats = recipe_for(pipe, made, form, head="w8")
    if fits:
        assert write(pipe, made, out, formats).path.exists()
        return
    with pytest.raises(ConfigError, match=rf"{form} would prune further than {n}:{m}") as caught:
        write(pipe, made, out, formats)
    assert caught.value.who == "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not out.exists()


@pytest.mark.parametrize(
    ("roles", "head", "change", "who"),
    [
        (["up", "gate"], "w8", {}, "language_model.model.layers.0.self_attn.q_proj.weight"),  # not pruned at all
        ([], None, {}, "language_model.model.embed_tokens.weight"),
        ([], "w8", {"mlp.*": "nm14_w4"}, "mlp."),
        ([], "w8", {}, ""),
    ],
)
def test_matrices_that_were_not_pruned_are_not_pruned_by_their_format(
    roles: list[str], head: str | None, change: dict[str, str], who: str, tmp_path: Path
) -> None:
    pipe = Pipeline.from_plugins([*MODEL, {"sparsity": {"n": 1, "m": 4, "roles": roles}}], seed=1)
    made = pipe.compress("magnitude")
    formats = recipe_for(pipe, made, "nm14_w4", head=head) | change
    if not who:
        assert write(pipe, made, tmp_path / "m.andes", formats).path.exists()
        return
    with pytest.raises(ConfigError, match="would prune further") as caught:
        write(pipe, made, tmp_path / "m.andes", formats)
    assert str(caught.value.who).startswith(who)
    # a plain pack, without a compressor that chose what is kept, may prune
    assert write(pipe, Compressed(), tmp_path / "plain.andes", formats).path.exists()
