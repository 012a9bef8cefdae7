"""The integer reference: products derived by hand, and sessions of a static cache."""

import numpy as np
import pytest
import torch
from andes_compression.pack import pack_model
from andes_compression.recipe import default_recipe
from andes_dimensity.codes import Matrix, refuse_unfit
from andes_dimensity.options import Options
from andes_dimensity.reference import CodedLinear, DimensityBackend, coded, rounded_rows

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable, ConfigError, SessionError
from andes_sdk.types import Inputs, Range

CODES = Matrix(np.array([[2, -3], [127, 1]], np.int8), np.array([0.5, 0.25], np.float32), 8, "rounded")


def opened(**options):
    model = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    return Pipeline.from_plugins([*model, {"dimensity": options}], backend="dimensity", seed=3)


def test_a_row_is_rounded_to_its_largest_magnitude():
    whole, step = rounded_rows(torch.tensor([[127.0, -63.4, 0.6]]), 127)
    assert whole.tolist() == [[127.0, -63.0, 1.0]]
    assert step.tolist() == [[1.0]]


def test_a_trained_range_clips_what_lies_beyond():
    whole, step = rounded_rows(torch.tensor([[3.0, 100.0]]), 127, Range(bits=8, scale=0.5))
    assert whole.tolist() == [[6.0, 127.0]]
    assert step.tolist() == [[0.5]]


def test_products_by_hand():
    layer = CodedLinear(CODES, torch.tensor([1.0, 0.0]), "a8", Range(bits=8, scale=0.5))
    # x / 0.5 = (4, 10): 2 * 4 - 3 * 10 = -22, times 0.25, plus 1; 127 * 4 + 10 = 518, times 0.125
    assert layer(torch.tensor([[2.0, 5.1]])).tolist() == [[-4.5, 64.75]]
    plain = CodedLinear(CODES, None, "float", None)
    assert plain(torch.tensor([[2.0, 4.0]])).tolist() == [[-4.0, 64.5]]


GROUPED = Matrix(np.array([[2, -3, 7]], np.int8), np.array([[0.5, 0.25]], np.float32), 4, "packed", 2)


def test_products_of_several_scales_in_a_row_by_hand():
    assert GROUPED.weights.tolist() == [[1.0, -1.5, 1.75]]
    layer = CodedLinear(GROUPED, None, "a8", Range(bits=8, scale=0.5))
    # x / 0.5 = (4, 10, -2): (2 * 4 - 3 * 10) * 0.5 + 7 * -2 * 0.25 = -14.5, times 0.5
    assert layer(torch.tensor([[2.0, 5.1, -1.0]])).tolist() == [[-7.25]]
    rows = torch.randn(9, 3)
    assert torch.equal(layer(rows), torch.cat([layer(row[None]) for row in rows]))


@pytest.mark.parametrize("form", ["w8", "w4_g32"])
def test_a_packed_file_runs_on_the_codes_that_it_has(form, pipe, tmp_path):
    file = pack_model(pipe.model, default_recipe(pipe.model, form), tmp_path / "a.andes", plan=pipe.plan).path
    own = Pipeline.from_pretrained(
        file, plugins=[{"dimensity": {"rows": 64, "prompt": 16, "weights": "w4"}}], backend="dimensity"
    )
    ids = [5, 9, 40, 7]
    want, got = (one.session().extend(ids)[0] for one in (Pipeline.from_pretrained(file), own))
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()  # rounded anew to 4 bits it would be 10 % off
    assert ("only for a unit that decompresses" in own.compiled.facts()) is (form == "w4_g32")


@pytest.mark.parametrize("mode", ["a16", "a8"])
def test_no_bit_of_a_product_depends_on_its_company(mode):
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (48, 640)).astype(np.int8)
    layer = CodedLinear(Matrix(codes, np.full(48, 0.01, np.float32), 8, "rounded"), None, mode, None)
    x = torch.from_numpy(rng.normal(size=(33, 640)).astype(np.float32))
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))


def test_sixteen_bits_are_nearer_to_floats_than_eight():
    answers = {}
    for mode in ("float", "a16", "a8"):
        pipe = opened(activations=mode, rows=64, prompt=16)
        session = pipe.session()
        answers[mode] = session.extend([5, 9, 40, 7])[0]
    largest = answers["float"].abs().max()
    sixteen, eight = ((answers[m] - answers["float"]).abs().max() / largest for m in ("a16", "a8"))
    assert sixteen < 1e-3
    assert sixteen < eight < 0.2


def test_the_original_keeps_its_weights(pipe):
    before = {n: p.clone() for n, p in pipe.model.named_parameters()}
    made = coded(pipe.model, Options(weights="w4"))
    assert all(torch.equal(p, before[n]) for n, p in pipe.model.named_parameters())
    assert isinstance(made.language_model.lm_head, CodedLinear)
    assert not isinstance(pipe.model.language_model.lm_head, CodedLinear)


def test_a_model_of_another_precision_stays_in_it(pipe):
    model = pipe.model.to(torch.bfloat16)
    made = coded(model, Options())
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_codes_of_four_bits_are_within_four_bits(pipe):
    made = coded(pipe.model, Options(weights="w4", head="w8"))
    layers = {n: m for n, m in made.language_model.named_modules() if isinstance(m, CodedLinear)}
    assert len(layers) == 7 * pipe.model.text.layers + 1
    assert all(m.codes.abs().max() <= 7 for n, m in layers.items() if n != "lm_head")
    assert layers["lm_head"].codes.abs().max() > 7


def test_a_static_cache_refuses_what_it_has_no_place_for():
    pipe = opened(rows=16, prompt=8)
    session = pipe.session()
    session.extend(list(range(3, 15)))
    session.commit()
    with pytest.raises(SessionError, match="static cache has 16 rows") as caught:
        session.extend([1, 2, 3, 4, 5])
    assert "12 are in use, 5 more are needed" in caught.value.why
    session.extend([1, 2, 3, 4])  # the refusal changed nothing


def test_other_devices_are_refused(pipe):
    with pytest.raises(BackendUnavailable, match="no device 'cuda'"):
        DimensityBackend(Options()).compile(pipe.model, device="cuda", dtype="float32")


def test_what_is_computed_is_told():
    facts = opened(activations="a8", rows=64).compiled.facts()
    assert facts["products"] == "int8 codes, exact sums"
    assert facts["cache"] == "64 rows, a8"


@pytest.mark.parametrize(("one", "bits"), [(Range(bits=16, scale=0.5), 8), (Range(bits=8, scale=0.5, zero=3), 8)])
def test_ranges_that_a_mode_cannot_hold_are_refused(one, bits):
    with pytest.raises(ConfigError, match="does not fit") as caught:
        refuse_unfit("layer", one, bits)
    assert caught.value.who == "layer"


def test_a_range_of_fewer_bits_clips_at_its_own():
    layer = CodedLinear(CODES, None, "a16", Range(bits=8, scale=0.5))
    far, edge = torch.tensor([[1000.0, 1000.0]]), torch.tensor([[63.5, 63.5]])
    assert torch.equal(layer(far), layer(edge))


@pytest.mark.parametrize("activations", ["float", "a16"])
def test_uniform_eviction_makes_room_in_the_static_cache(activations):
    okv = {"rows": 24, "recent": 8, "slack": 4, "chunk": 16, "scorer": "snapkv", "window": 8, "budget": "uniform"}
    model = [{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}]
    reference = {"rows": 64, "prompt": 16, "activations": activations}
    pipe = Pipeline.from_plugins([*model, {"okv": okv}, {"dimensity": reference}], backend="dimensity", seed=3)
    session = pipe.session()
    session.prefill(Inputs(torch.arange(200) % 400))
    assert session.length == 200
    assert len({count for layer in session.stats.rows for count in layer}) == 1
    assert max(count for layer in session.stats.rows for count in layer) <= 28
    kept = [positions.tolist() for layer in range(pipe.model.text.layers) for positions in session.heads(layer)[2]]
    assert all(one == kept[0] for one in kept)  # the same rows everywhere: one mask for all layers
    assert kept[0][:4] == [0, 1, 2, 3]
    for token in range(80):  # longer than the cache has rows
        session.extend([token])
        session.commit()
    assert max(count for layer in session.stats.rows for count in layer) <= 64
