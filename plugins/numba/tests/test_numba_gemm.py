import numpy as np
import pytest
from andes_numba import FORMATS, gemm, lora, product
from andes_numba.machine import KERNEL_SETS, choose_kernels, features
from andes_numba.simd import Tag
from andes_numba.step import padded_rows
from andes_packing.formats import find

BEST = choose_kernels("auto")[0]


def run(module, name, isa, packed, x, threads, mode="int8"):
    count, columns = x.shape
    rows = padded_rows(count)
    buffer = np.zeros((rows, -(-columns // 128) * 128), np.float32)
    buffer[:count, :columns] = x
    y = np.full((rows, 16 * len(packed)), 7, np.float32)
    tags = Tag("isa", isa), Tag("format", name), Tag("mode", mode)
    module.multiply_rows(*tags, packed, columns, buffer, count, y, threads)
    return y[:count]


def check(name, isa):
    rng = np.random.default_rng(0)
    layout = find(name)
    # eleven row blocks: five times two, and one that is left; 15 and 300 fill no tile and no group
    packed = layout.pack(layout.quantise(rng.normal(size=(176, 300)).astype(np.float32), search=False))
    x = rng.normal(size=(15, 300)).astype(np.float32)
    x[0] *= 1e4
    wanted = run(product, name, isa, packed, x, 1)
    for threads in (1, 3):
        assert np.array_equal(run(gemm, name, isa, packed, x, threads), wanted)
    for few in range(1, 12):
        assert np.array_equal(run(gemm, name, isa, packed, x[:few], 1), wanted[:few])
    for row in range(len(x)):
        assert np.array_equal(run(product, name, isa, packed, x[row : row + 1], 1), wanted[row : row + 1])


@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_have_the_bits_of_few(name):
    check(name, BEST)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2"])
@pytest.mark.parametrize("name", ["w8", "w4_g32", "nm14_w2", "nm28_w4"])
def test_many_rows_have_the_bits_of_few_in_other_kernel_sets(name, isa):
    if not KERNEL_SETS[isa] <= features():
        pytest.skip(f"no {isa} here")
    check(name, isa)


@pytest.mark.parametrize("name", ["w4_g32", "nm14_w4"])
def test_gates_of_many_rows_have_the_bits_of_their_products(name):
    rng = np.random.default_rng(0)
    layout = find(name)
    # five row blocks: two times two, and one that is left
    both = [layout.pack(layout.quantise(rng.normal(size=(80, 300)).astype(np.float32), search=False)) for _ in "gu"]
    x = rng.normal(size=(16, 384)).astype(np.float32)
    x[:, 300:] = 0
    products = [run(product, name, BEST, packed, x[:, :300], 1) for packed in both]
    wanted, got = np.empty((16, 80), np.float32), np.full((16, 80), 7, np.float32)
    lora.gate_rows(np.concatenate(products, 1), wanted, 80, 16, 1)
    tags = Tag("isa", BEST), Tag("format", name), Tag("mode", "int8")
    for threads in (1, 3):
        gemm.gate_rows(*tags, np.stack(both), 300, x, 16, got, threads)
        assert np.array_equal(got, wanted)


def test_exact_activations_are_left_to_the_plain_product():
    layout = find("w4_g32")
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    packed, x = layout.pack(layout.quantise(weight, search=False)), np.ones((16, 128), np.float32)
    here = run(gemm, "w4_g32", BEST, packed, x, 1, mode="exact")
    assert np.array_equal(here, run(product, "w4_g32", BEST, packed, x, 1, mode="exact"))
