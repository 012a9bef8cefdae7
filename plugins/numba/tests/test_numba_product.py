import os
import subprocess
import sys

import numpy as np
import pytest
from andes_numba import FORMATS
from andes_numba.machine import KERNEL_SETS, features
from andes_numba.product import multiply_rows
from andes_numba.simd import Tag
from andes_numba.step import padded_rows
from andes_packing.formats import find

SHAPES = [(1, 1, 1), (33, 300, 9), (48, 128, 2), (16, 257, 4), (0, 64, 3)]
"""Rows, columns, activation rows: one of each, whole and broken blocks and groups, nothing at all."""


def kernels(name):
    missing = KERNEL_SETS[name] - features()
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"no {', '.join(sorted(missing))}"))


every_set = pytest.mark.parametrize("isa", [kernels(name) for name in KERNEL_SETS])
every_format = pytest.mark.parametrize("name", FORMATS)


def matrix(name, rows, columns, seed=0):
    """Packed weights and what they dequantise to, (rows, columns) float64."""
    layout = find(name)
    weight = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    packed = layout.pack(layout.quantise(weight, search=False))
    return packed, layout.dequantise(packed, rows, columns).astype(np.float64)


def activations(columns, count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, columns)).astype(np.float32)


def product(name, isa, mode, packed, x, threads=1):
    count, columns = x.shape
    rows = padded_rows(count)
    buffer, y = np.zeros((rows, -(-columns // 128) * 128), np.float32), np.full((rows, 16 * len(packed)), 7, np.float32)
    buffer[:count, :columns] = x
    tags = Tag("isa", isa), Tag("format", name), Tag("mode", mode)
    multiply_rows(*tags, packed, columns, buffer, count, y, threads)
    return y[:count]


@every_set
@every_format
def test_float_activations_give_the_product_of_the_dequantised_weights(name, isa):
    for rows, columns, count in SHAPES:
        packed, weights = matrix(name, rows, columns)
        x = activations(columns, count)
        wanted = x.astype(np.float64) @ weights.T
        # 1e-4 is far above float32 rounding of 300 terms, and far below any slip of a code, scale or column
        limit = 1e-4 * np.abs(wanted).max(initial=1)
        assert np.abs(product(name, isa, "exact", packed, x)[:, :rows] - wanted).max(initial=0) <= limit


@every_set
@every_format
def test_int8_activations_are_off_by_half_a_step_per_column_at_most(name, isa):
    for rows, columns, count in SHAPES:
        packed, weights = matrix(name, rows, columns)
        x = activations(columns, count)
        group = find(name).group
        groups = np.zeros((count, -(-columns // group) * group))
        groups[:, :columns] = np.abs(x)
        steps = groups.reshape(count, -1, group).max(axis=2) / 127  # one step of the activations of each group
        bound = 0.501 * np.repeat(steps, group, axis=1)[:, :columns] @ np.abs(weights).T + 1e-4
        off = np.abs(product(name, isa, "int8", packed, x)[:, :rows] - x.astype(np.float64) @ weights.T)
        assert (off <= bound).all()


@every_set
@every_format
def test_rows_that_fill_a_block_up_come_out_as_zero(name, isa):
    packed, _ = matrix(name, 33, 300)
    for mode in ("int8", "exact"):
        assert not product(name, isa, mode, packed, activations(300, 5))[:, 33:].any()


@every_set
@every_format
@pytest.mark.parametrize("mode", ["int8", "exact"])
def test_several_rows_have_the_bits_of_each_row_alone(name, isa, mode):
    packed, _ = matrix(name, 40, 300)
    x = activations(300, 11)
    for count in (11, 3):
        together = product(name, isa, mode, packed, x[:count])
        for row in range(count):
            assert np.array_equal(product(name, isa, mode, packed, x[row : row + 1])[0], together[row])


@every_set
@every_format
@pytest.mark.parametrize("mode", ["int8", "exact"])
def test_the_number_of_threads_does_not_change_a_bit(name, isa, mode):
    packed, _ = matrix(name, 90, 300)
    for count in (1, 6):
        x = activations(300, count)
        one = product(name, isa, mode, packed, x, threads=1)
        for threads in (2, 3, 8):
            # 8 is more than there are row blocks
            assert np.array_equal(product(name, isa, mode, packed, x, threads=threads), one)


@every_format
@pytest.mark.parametrize("mode", ["int8", "exact"])
@pytest.mark.parametrize("isa", [kernels("avx512vnni"), kernels("avx2")])
def test_kernel_sets_agree_to_the_bit(name, mode, isa):
    packed, _ = matrix(name, 40, 300)
    x = activations(300, 5)
    x[0] *= 1e4  # the largest byte times the largest activation, in every column: where 16-bit sums would overflow
    x[1] = np.sign(x[1])
    wanted = product(name, "portable", mode, packed, x)
    assert np.array_equal(product(name, isa, mode, packed, x), wanted)


def test_extreme_bytes_do_not_overflow_in_any_kernel_set():
    layout = find("w8")
    packed = np.zeros((1, layout.group_bytes), np.uint8)
    packed[:, :32] = np.full(16, 1, np.float16).view(np.uint8)
    x = np.ones((1, 128), np.float32)
    for byte in (0, 127, 128, 255):
        packed[:, 32:] = byte
        for isa in (name for name, needs in KERNEL_SETS.items() if needs <= features()):
            # 127 steps of 1 / 127 in each of 128 columns; one rounding of the float32 scale 1 / 127
            assert product("w8", isa, "int8", packed, x) == pytest.approx(
                np.full((1, 16), 128.0 * (byte - 128)), rel=1e-6
            )


def test_code_made_for_a_processor_without_avx512_gives_the_same_bits():
    if not KERNEL_SETS["avx2"] <= features():
        pytest.skip("no AVX2 here")
    names = ("w4_g32", "nm14_w4")
    here = [product(n, "portable", "int8", matrix(n, 40, 300)[0], activations(300, 5)).tobytes().hex() for n in names]
    code = (
        "import test_numba_product as t; from andes_numba.machine import choose_kernels as choose;"
        "assert choose('auto')[0] == 'avx2', choose('auto');"
        "made = lambda n: t.product(n, 'avx2', 'int8', t.matrix(n, 40, 300)[0], t.activations(300, 5));"
        f"[print(made(n).tobytes().hex()) for n in {names}]"
    )
    older = {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+avx,+fma,+f16c,+sse4.2,+ssse3,+bmi2,+popcnt,+64bit",
    }
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    env = {**os.environ, **older, "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == here
