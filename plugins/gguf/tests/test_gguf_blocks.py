"""ggml's blocks: what lies on a grid is found again to the bit, and errors are those of what `gguf` reads back."""

import gguf
import numpy as np
import pytest
from andes_gguf.blocks import GRIDS, encode, exact, on_grid
from andes_packing.formats import find
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk.errors import CheckpointError

RANGES = {"Q8_0": (-128, 127, 32), "Q4_0": (-8, 7, 32), "TQ1_0": (-1, 1, 256), "TQ2_0": (-1, 1, 256)}


def back(made):
    return gguf.quants.dequantize(made.data, gguf.GGMLQuantizationType[made.kind])


def on(kind, seed, scale=1e-2, rows=3, blocks=2):
    """Random codes times random float16 scales."""
    low, high, size = RANGES[kind]
    numbers = np.random.default_rng(seed)
    codes = numbers.integers(low, high + 1, (rows, blocks, size))
    scales = (scale * numbers.standard_normal((rows, blocks, 1))).astype(np.float16).astype(np.float32)
    return (codes * scales).astype(np.float32).reshape(rows, -1)


@given(
    kind=st.sampled_from(sorted(RANGES)), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-6, 1e-3, 1.0, 300.0])
)
def test_codes_times_scales_are_written_without_loss(kind, seed, scale):
    x = on(kind, seed, scale)
    made = encode(x, kind, "x")
    assert made.lossless
    assert np.array_equal(back(made), x)


@given(kind=st.sampled_from(["Q8_0", "Q4_0"]), k=st.integers(1, 127), sign=st.sampled_from([-1, 1]))
def test_a_block_that_never_uses_its_largest_code_is_found_too(kind, k, sign):
    top = k % RANGES[kind][1] + 1 if kind == "Q4_0" else k
    top = min(top, RANGES[kind][1])
    codes = np.random.default_rng(k).integers(-top + 1 if top > 1 else 0, top, (1, 32))
    codes[0, 5] = top
    x = (codes * np.float32(np.float16(0.0173 * sign))).astype(np.float32)
    scale, found = exact(x, GRIDS[kind])
    assert found.all()
    assert np.array_equal(np.rint(x / scale[:, None]) * scale[:, None], x)


@pytest.mark.parametrize("kind", sorted(RANGES))
def test_the_error_in_the_report_is_that_of_what_is_read_back(kind):
    x = np.random.default_rng(0).standard_normal((5, 512), np.float32)
    made = encode(x, kind, "x")
    off = back(made).astype(np.float64) - x
    assert not made.lossless
    assert made.max_error == pytest.approx(np.abs(off).max())
    assert made.relative_error == pytest.approx(np.sqrt((off**2).sum() / (x.astype(np.float64) ** 2).sum()))
    # never worse than ggml's own choice of scales, by squared error
    theirs = gguf.quants.dequantize(
        gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind]), gguf.GGMLQuantizationType[kind]
    )
    assert (off**2).sum() <= ((theirs - x) ** 2).sum() * 1.0001  # Q8_0: the same but for rounding of the scale


def test_one_block_off_the_grid_does_not_spoil_the_others():
    x = on("Q4_0", 1, rows=300, blocks=4)
    x[290, 40] += 1e-5
    made = encode(x, "Q4_0", "x")
    wrong = back(made) != x
    assert wrong.any()
    assert set(zip(*np.nonzero(wrong.reshape(300, 4, 32).any(axis=2)), strict=True)) == {(290, 1)}


def test_ternary_halves_of_different_scales_are_not_lossless_and_the_report_says_by_how_much():
    signs = np.random.default_rng(0).integers(-1, 2, (4, 256)).astype(np.float32)
    same, different = signs * np.float32(0.25), signs.copy()
    different[:, :128] *= np.float32(0.25)
    different[:, 128:] *= np.float32(0.5)
    assert encode(same, "TQ1_0", "x").lossless
    made = encode(different, "TQ1_0", "x")
    assert not made.lossless
    # one scale for both halves: at best in the middle of 0.25 and 0.5, at worst one of them
    assert 0.125 <= made.max_error <= 0.25
    # groups of 128 lie in blocks of 32 with their own scales, so auto takes those
    assert encode(different, "auto", "x").kind == "Q4_0"
    assert encode(same, "auto", "x").kind == "TQ1_0"


def test_auto_takes_the_smallest_type_without_loss():
    noise = np.random.default_rng(0).standard_normal((4, 256), np.float32)
    half, brain = noise.astype(np.float16).astype(np.float32), (noise.view(np.uint32) & 0xFFFF0000).view(np.float32)
    kinds = [encode(x, "auto", "x").kind for x in (on("TQ2_0", 0), on("Q4_0", 0), on("Q8_0", 0), half, brain, noise)]
    assert kinds[:4] == ["TQ1_0", "Q4_0", "Q8_0", "F16"]
    # seven bits of mantissa fit into float16, unless a number is too small for it
    assert kinds[4:] == ["F16" if on_grid(brain, "F16") else "BF16", "F32"]
    assert encode(brain * np.float32(2**-20), "auto", "x").kind == "BF16"
    # 40 columns are no whole blocks, and a code of 4 bits times a scale of 11 may have more than float16's 11
    assert encode(on("Q4_0", 0)[:, :40].copy(), "auto", "x").kind == "F32"


def test_every_packed_format_of_ours_goes_into_a_block_type_without_loss():
    weight = np.random.default_rng(0).standard_normal((32, 512), np.float32)
    smallest = {"w8": "Q8_0", "w4_g32": "Q4_0", "w4_g128": "Q4_0", "nm14_w4": "Q4_0", "nm28_w4": "Q4_0",
                "nm14_w2": "Q4_0", "ternary_g128": "Q4_0", "ternary34_g128": "Q4_0", "f16": "F16"}  # fmt: skip
    for name, kind in smallest.items():
        x = find(name).quantise(weight).weights()
        made = encode(x, "auto", name)
        assert (made.kind, made.lossless) == (kind, True), name
        assert np.array_equal(back(made), x)


def test_numbers_that_a_type_cannot_hold_are_refused():
    with pytest.raises(CheckpointError, match="not finite"):
        encode(np.array([[np.nan] * 32], np.float32), "Q8_0", "x")
    with pytest.raises(CheckpointError, match="too large for F16"):
        encode(np.full((1, 32), 1e6, np.float32), "F16", "x")
    with pytest.raises(CheckpointError, match="too large for a float16 scale"):
        encode(np.full((1, 32), 1e8, np.float32), "Q4_0", "x")
    with pytest.raises(CheckpointError, match="rows of 576 are not whole blocks of 256"):
        encode(np.zeros((1, 576), np.float32), "TQ2_0", "x")
    assert encode(np.zeros((2, 256), np.float32), "TQ1_0", "x").lossless
