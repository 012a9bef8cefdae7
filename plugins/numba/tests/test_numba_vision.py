from functools import cache
from types import SimpleNamespace

import pytest
import torch
from andes_numba.encoder import Vision, choose_numbers, choose_vision
from andes_numba.machine import KERNEL_SETS, choose_kernels, features
from andes_numba.team import Team
from numba.core import config

from andes_sdk import Pipeline
from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.testing.reference import ReferenceEncoder, ReferenceProjector
from andes_sdk.types import VisionSpec

BEST = choose_kernels("auto")[0]
GRIDS = [(10, 12), (2, 2), (6, 8)]
"""Two strips of 64 and 56 patches; less than a tile of keys; a strip that is not full."""

brain = pytest.mark.skipif("avx512bf16" not in features(), reason="no avx512bf16: nothing multiplies bfloat16")


@cache
def model(encoder, heads=2, spread=3.0):
    """A tiny model whose attention and gates do more than at initialisation."""
    torch.manual_seed(0)
    name, *act = encoder.split()
    options = {"preset": "tiny", "config": {"num_attention_heads": heads} | ({"hidden_act": act[0]} if act else {})}
    built = Pipeline.from_plugins([{name: options}, "mlp", {"qwen3": {"preset": "tiny"}}]).model.eval()
    with torch.no_grad():
        for weight in [*built.vision_encoder.parameters(), *built.mlp.parameters()]:
            if weight.ndim > 1:
                weight.mul_(spread)
            else:
                weight.add_(0.1 * torch.randn_like(weight))
    return built


def patches(built, grids, seed=1):
    count = sum(h * w for h, w in grids)
    return torch.randn(count, 3 * built.vision.patch_size**2, generator=torch.Generator().manual_seed(seed))


def off(got, wanted):
    """Root of the mean square of the error, over that of the truth."""
    return float((got - wanted).norm() / wanted.norm())


@torch.inference_mode()
def errors(encoder, numbers, kernels=BEST, **options):
    """Of features, and of the projector's rows from true features."""
    built = model(encoder, **options)
    x = patches(built, GRIDS)
    wanted = built.vision_encoder(x, GRIDS)
    vision = Vision(built, numbers, kernels, Team(1))
    return off(vision.encode(x, GRIDS), wanted), off(vision.project(wanted), built.mlp(wanted))


@pytest.mark.parametrize("encoder", ["aimv2", "siglip2 gelu", "siglip2 gelu_pytorch_tanh"])
def test_in_float32_features_and_rows_are_those_of_torch(encoder):
    # both add float32 numbers, in another order
    assert max(errors(encoder, "f32")) < 1e-4


def test_in_float32_attention_to_a_single_key_is_that_of_torch():
    # weights of queries and keys 12 times as large: scores far beyond what exp holds
    assert max(errors("aimv2", "f32", spread=12.0)) < 1e-3


@brain
@pytest.mark.parametrize("encoder", ["aimv2", "siglip2 gelu"])
def test_bfloat16_is_off_by_less_than_one_in_a_hundred(encoder):
    # 2**-9 in each product of two blocks
    assert max(errors(encoder, "bf16")) < 0.01


@pytest.mark.parametrize("encoder", ["aimv2", "siglip2 gelu"])
def test_int8_is_off_by_less_than_one_in_thirty(encoder):
    # half of 1 / 127 of the largest in weights, activations, queries and keys of two blocks
    assert max(errors(encoder, "w8")) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["portable", "avx2"])
def test_other_kernel_sets_are_as_exact(kernels):
    if not KERNEL_SETS[kernels] <= features():
        pytest.skip(f"no {kernels} here")
    assert max(errors("siglip2 gelu", "w8", kernels)) < 0.03
    assert max(errors("siglip2 gelu", "f32", kernels)) < 1e-4


@pytest.mark.parametrize("numbers", ["f32", "w8", pytest.param("bf16", marks=brain)])
def test_an_image_has_the_bits_it_has_alone_whatever_is_packed_beside_it(numbers):
    built = model("aimv2")
    vision, x = Vision(built, numbers, BEST, Team(1)), patches(built, GRIDS)
    together, start = vision.encode(x, GRIDS), 0
    for h, w in GRIDS:
        rows = slice(start, start + h * w)
        assert torch.equal(vision.encode(x[rows], [(h, w)]), together[rows])
        start += h * w


@pytest.mark.skipif(config.NUMBA_NUM_THREADS < 2, reason="Numba may start one thread only")
@pytest.mark.parametrize("numbers", ["f32", "w8", pytest.param("bf16", marks=brain)])
def test_the_number_of_threads_does_not_change_a_bit(numbers):
    built = model("siglip2 gelu")
    x, made = patches(built, GRIDS), []
    for threads in (1, 2):
        vision = Vision(built, numbers, BEST, Team(threads))
        features = vision.encode(x, GRIDS)
        made.append((features, vision.project(features)))
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))


def test_no_picture_gives_no_features():
    built = model("aimv2")
    assert Vision(built, "f32", BEST, Team(1)).encode(patches(built, []), []).shape == (0, built.vision.width)


def test_patches_that_do_not_fit_their_grids_are_refused():
    built = model("aimv2")
    with pytest.raises(InputError, match="do not fit the grids"):
        Vision(built, "f32", BEST, Team(1)).encode(patches(built, GRIDS)[1:], GRIDS)


def test_modules_without_a_blueprint_stay_on_torch_and_say_so():
    spec = VisionSpec(width=32, patch_size=4)
    encoder = ReferenceEncoder().andes_vision_encoder()
    projector = ReferenceProjector().andes_projector(vision=encoder.spec, text=model("aimv2").text)
    built = SimpleNamespace(vision_encoder=encoder, mlp=projector, vision=spec, dtype=torch.float32)
    vision = Vision(built, "f32", BEST, Team(1))
    assert vision.facts["vision"] == f"on torch: {type(encoder).__name__} has no blueprint"
    assert vision.facts["projector"] == f"on torch: {type(projector).__name__} has no blueprint"
    x = torch.randn(8, 3 * encoder.spec.patch_size**2)
    with torch.inference_mode():
        wanted = encoder(x, [(2, 4)])
        assert torch.equal(vision.encode(x, [(2, 4)]), wanted)
        assert torch.equal(vision.project(wanted), projector(wanted))


def test_heads_that_do_not_fill_vectors_stay_on_torch_and_say_so():
    built = model("aimv2", heads=4)
    vision = Vision(built, "w8", BEST, Team(1))
    assert vision.facts["vision"] == "on torch: 4 heads of 32 features: a head must be a multiple of 16"
    assert vision.facts["projector"].startswith("compiled, int8 products")
    x = patches(built, GRIDS)
    with torch.inference_mode():
        assert torch.equal(vision.encode(x, GRIDS), built.vision_encoder(x, GRIDS))


def test_torch_asked_for_is_torch():
    assert Vision(model("aimv2"), "torch", BEST, Team(1)).facts["vision"] == "on torch: asked for"


def test_auto_follows_the_activations_and_the_processor(monkeypatch):
    assert choose_vision("auto", "exact", BEST) == "f32"
    assert choose_vision("w8", "exact", BEST) == "w8"
    assert choose_vision("auto", "int8", "avx2") == "w8"
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx512f,+avx512bf16")
    assert choose_vision("auto", "int8", "avx512vnni") == "bf16"


def test_bfloat16_is_refused_where_it_is_not_multiplied():
    with pytest.raises(BackendUnavailable, match="cannot multiply bfloat16"):
        choose_numbers("bf16", "portable")


def test_a_session_reads_pictures_in_the_numbers_asked_for():
    parts = ["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "tiny"}}]
    numba = {"format": "f16", "kv": "f32", "activations": "exact"}
    pipe = Pipeline.from_plugins([*parts, {"numba": numba}], backend="numba")
    assert pipe.compiled.facts()["vision"] == "compiled, f32 products, f32 scores, f32 weighted values"
    eight = Pipeline.from_plugins([*parts, {"numba": {**numba, "vision": "w8"}}], backend="numba")
    assert eight.compiled.facts()["projector"].startswith("compiled, int8 products")
