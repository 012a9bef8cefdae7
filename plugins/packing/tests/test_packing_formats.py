"""Formats: lossless on their own grid, nearest, counted to the bit, and laid out as documented."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from andes_packing.formats import FORMATS, LANES, Codes, Format, Grid, Integer, OneOfFour, Scaled, Sparse, find, known
from attrs import field, frozen
from hypothesis import given
from hypothesis import strategies as st

from andes_sdk.errors import CheckpointError, ConfigError, DuplicateName

ALL = list(FORMATS.values())
SCALED = [f for f in ALL if isinstance(f, Scaled)]
SPARSE = [f for f in ALL if isinstance(f, Sparse)]
names = pytest.mark.parametrize("form", ALL, ids=lambda f: f.name)
scaled = pytest.mark.parametrize("form", SCALED, ids=lambda f: f.name)
sparse = pytest.mark.parametrize("form", SPARSE, ids=lambda f: f.name)

# one row, one column, nothing at all, and sizes that are multiples of nothing
sizes = st.tuples(
    st.one_of(st.sampled_from([0, 1, 15, 16, 17]), st.integers(0, 50)),
    st.one_of(st.sampled_from([0, 1, 2, 3, 127, 128, 129]), st.integers(0, 400)),
)
seeds = st.integers(0, 2**32 - 1)


def grid_values(grid: Grid) -> np.ndarray:
    return np.arange(grid.low, grid.high + 1, grid.step)


def random_codes(form: Format, rows: int, cols: int, seed: int) -> Codes:
    """Any codes and any finite float16 scales, subnormal and negative ones too."""
    rng = np.random.default_rng(seed)
    groups = -(-cols // form.group)
    if not isinstance(form, Scaled):
        values = rng.integers(0, 1 << 16, (rows, cols), dtype=np.uint16).view(np.float16)
        return Codes(np.where(np.isfinite(values), values, 0), np.zeros((rows, 0), np.float16), form.group)
    values = rng.choice(grid_values(form.grid), (rows, cols)).astype(np.int8)
    if isinstance(form, Sparse):
        # a random n of every m; where the matrix ends inside a block, of its real columns
        order = rng.random((rows, -(-cols // form.m) * form.m))
        order[:, cols:] = 2.0
        ranks = order.reshape(rows, order.shape[1] // form.m, form.m).argsort(axis=2).argsort(axis=2)
        values *= (ranks < form.n).reshape(order.shape)[:, :cols]
    scales = rng.integers(0, 1 << 16, (rows, groups), dtype=np.uint16).view(np.float16)
    return Codes(values, np.where(np.isfinite(scales), scales, np.float16(1)), form.group)


def normal(rows: int, cols: int, seed: int = 0, spread: float = 0.02) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, cols)) * spread).astype(np.float32)


def squared(form: Format, weight: np.ndarray, **options: Any) -> float:
    return float(((form.quantise(weight, **options).weights().astype(np.float64) - weight) ** 2).sum())


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("f16", 16.0),
        ("w8", 8.125),  # 8 + 16 / 128
        ("w4_g32", 4.5),  # 4 + 16 / 32
        ("w4_g128", 4.125),  # 4 + 16 / 128
        ("ternary_g128", 2.125),  # 2 + 16 / 128
        ("nm14_w4", 1.625),  # (4 + 2) / 4 + 16 / 128
        ("nm28_w4", 1.75),  # (2 * 4 + 5) / 8 + 16 / 128: 28 patterns need 5 bits
        ("nm14_w2", 1.125),  # (2 + 2) / 4 + 16 / 128
        ("ternary34_g128", 1.375),  # (2 + 3) / 4 + 16 / 128
    ],
)
def test_bits_per_weight_are_those_computed_by_hand(name: str, bits: float) -> None:
    form = find(name)
    assert form.bpw == bits
    assert form.type_bpw(32, 1024) == bits
    assert form.type_bpw(32, 1024, memory=True) == bits
    assert form.nbytes(32, 1024) == bits * 32 * 1024 / 8


@names
def test_padding_is_counted(form: Format) -> None:
    assert form.type_bpw(1, 1) == form.group_bytes * 8
    assert form.type_bpw(17, form.group + 1) > form.bpw
    assert form.type_bpw(0, 7) == form.type_bpw(7, 0) == 0.0


# ---------------------------------------------------------------- lossless


@names
@given(size=sizes, seed=seeds)
def test_what_lies_on_the_grid_comes_back_to_the_bit(form: Format, size: tuple[int, int], seed: int) -> None:
    codes = random_codes(form, *size, seed)
    packed = form.pack(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == form.packed_shape(*size)
    assert packed.nbytes == form.nbytes(*size)
    again = form.unpack(packed, *size)
    np.testing.assert_array_equal(again.values, codes.values)
    np.testing.assert_array_equal(again.scales.view(np.uint16), codes.scales.view(np.uint16))
    weights = form.dequantise(packed, *size)
    assert weights.dtype == np.float32
    assert weights.shape == size
    np.testing.assert_array_equal(weights, codes.weights())


@names
@given(size=sizes, seed=seeds)
def test_weights_that_are_quantised_pack_without_further_loss(form: Format, size: tuple[int, int], seed: int) -> None:
    codes = form.quantise(normal(*size, seed))
    np.testing.assert_array_equal(form.dequantise(form.pack(codes), *size), codes.weights())


@scaled
@given(size=sizes, seed=seeds)
def test_weights_on_the_grid_are_found_again_from_their_scales(form: Scaled, size: tuple[int, int], seed: int) -> None:
    codes = random_codes(form, *size, seed)
    usable = np.abs(codes.scales) > 1e-4  # a scale of zero has lost its codes, a subnormal one its inverse
    codes = Codes(codes.values, np.where(usable, codes.scales, np.float16(0.5)), form.group)
    again = form.quantise(codes.weights(), codes.scales)
    np.testing.assert_array_equal(again.weights(), codes.weights())


@names
def test_row_blocks_are_packed_on_their_own(form: Format) -> None:
    codes = random_codes(form, 40, 200, 1)
    whole = form.pack(codes)
    part = form.pack(Codes(codes.values[16:32], codes.scales[16:32], codes.group))
    np.testing.assert_array_equal(whole[1:2], part)


# ---------------------------------------------------------------- quantising


@scaled
def test_every_code_is_the_nearest_of_the_grid(form: Scaled) -> None:
    weight = normal(5, 300, 3)
    codes = form.quantise(weight)
    scales = np.repeat(codes.scales.astype(np.float64), form.group, axis=1)[:, :300]
    levels = grid_values(form.grid)[:, None, None] * scales
    nearest = np.abs(levels - weight).min(axis=0)
    off = np.abs(codes.weights() - weight)
    alive = codes.values != 0 if isinstance(form, Sparse) else np.ones_like(codes.values, bool)
    # the nearest of two levels can change where a weight lies half-way, by rounding in float32
    np.testing.assert_allclose(off[alive], nearest[alive], atol=1e-7)


@names
@given(size=sizes, seed=seeds, spread=st.sampled_from([1e-9, 1e-4, 0.02, 1.0, 10.0]))
def test_the_search_never_has_the_larger_error(form: Format, size: tuple[int, int], seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, size) * spread).astype(np.float32)
    # errors are compared in float32: equal ones may differ by its rounding
    assert squared(form, weight) <= squared(form, weight, search=False) * (1 + 1e-5)


@pytest.mark.parametrize(
    ("name", "at_most"),
    # the best uniform grids for a normal distribution have errors of 0.1902 (3 levels) and 0.01154 (16 levels); the
    # scales of groups adapt to their weights, so they do better
    [("ternary_g128", 0.190), ("w4_g128", 0.0115), ("w4_g32", 0.0075), ("w8", 6e-5)],
)
def test_the_search_comes_near_the_best_grid_for_normal_weights(name: str, at_most: float) -> None:
    weight = normal(64, 1024, spread=1.0)
    assert squared(find(name), weight) / weight.size < at_most
    assert squared(find(name), weight) < squared(find(name), weight, search=False)


@sparse
@given(size=sizes, seed=seeds)
def test_exactly_n_of_m_survive_and_they_are_the_largest(form: Sparse, size: tuple[int, int], seed: int) -> None:
    rows, cols = size
    rng = np.random.default_rng(seed)
    # magnitudes between 1 and 2 and a given scale: no survivor rounds to zero
    weight = (rng.uniform(1, 2, size) * rng.choice([-1, 1], size)).astype(np.float32)
    codes = form.quantise(weight, np.full((rows, -(-cols // form.group)), 0.3, np.float16))
    whole = cols // form.m * form.m
    blocks = (rows, whole // form.m, form.m)
    alive = codes.values[:, :whole].reshape(blocks) != 0
    assert (alive.sum(axis=2) == form.n).all()
    magnitude = np.abs(weight[:, :whole]).reshape(blocks)
    kept = np.where(alive, magnitude, np.inf).min(axis=2)
    dropped = np.where(alive, 0, magnitude).max(axis=2)
    assert (kept >= dropped).all()


@names
def test_zero_weights_stay_zero(form: Format) -> None:
    assert not form.dequantise(form.pack(form.quantise(np.zeros((3, 200), np.float32))), 3, 200).any()


@names
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_that_no_format_can_hold_are_refused(form: Format, bad: float) -> None:
    weight = normal(2, 8)
    weight[1, 3] = bad
    with pytest.raises(CheckpointError, match=r"finite|too large"):
        form.quantise(weight)


@names
def test_only_matrices_are_quantised(form: Format) -> None:
    with pytest.raises(ConfigError, match="shape"):
        form.quantise(np.zeros(4, np.float32))


# ---------------------------------------------------------------- layout, read byte by byte


def scalar(form: Format, packed: np.ndarray, row: int, col: int) -> float:
    """One weight, read from the bytes as the documentation describes them."""
    block, lane, group, k = row // 16, row % 16, col // form.group, col % form.group
    data = bytes(packed[block, group * form.group_bytes : (group + 1) * form.group_bytes])
    if form.name == "f16":
        return float(np.frombuffer(data, "<f2")[k * 16 + lane])
    scale = float(np.frombuffer(data[:32], "<f2")[lane])
    body = data[32:]
    if form.name == "w8":
        return (body[64 * (k // 4) + 4 * lane + k % 4] - 128) * scale
    if form.name.startswith("w4"):
        byte = body[64 * (k // 8) + 4 * lane + k % 4]
        return ((byte >> 4 if k % 8 >= 4 else byte & 15) - 8) * scale
    if form.name == "ternary_g128":
        byte = body[64 * (k // 16) + 4 * lane + k % 4]
        return ((byte >> 2 * (k % 16 // 4) & 3) - 1) * scale
    if form.name == "nm28_w4":
        octet = k // 8
        v, i = octet // 4, octet % 4
        high = int.from_bytes(body[8 * v : 8 * v + 8], "little") >> (4 * lane + i) & 1
        low = body[32 + 64 * (v // 2) + 4 * lane + i] >> 4 * (v % 2) & 15
        first, second = list(combinations(range(8), 2))[16 * high + low]
        both = body[160 + 64 * v + 4 * lane + i]
        return {first: (both & 15) - 8, second: (both >> 4) - 8}.get(k % 8, 0) * scale
    if form.name == "ternary34_g128":
        quad = k // 4
        low = int.from_bytes(body[64 * (quad // 8) + 4 * lane :][:4], "little") >> 4 * (quad % 8) & 15
        fifth = int.from_bytes(body[256 + 4 * lane :][:4], "little") >> quad & 1
        if low & 3 == k % 4:
            return 0.0
        place = k % 4 - (k % 4 > low & 3)
        return (2 * ((low >> 2 | fifth << 2) >> place & 1) - 1) * scale
    chunk, j, i = k // 64, k % 64 // 16, k % 16 // 4
    size = 192 if form.name == "nm14_w4" else 128
    part = body[size * chunk : size * (chunk + 1)]
    if part[4 * lane + i] >> 2 * j & 3 != k % 4:
        return 0.0
    if form.name == "nm14_w4":
        return ((part[64 + 64 * (j // 2) + 4 * lane + i] >> 4 * (j % 2) & 15) - 8) * scale
    return ((part[64 + 4 * lane + i] >> 2 * j & 3) * 2 - 3) * scale


@names
def test_bytes_lie_as_documented(form: Format) -> None:
    weight = normal(20, 259, 5)
    packed = form.pack(form.quantise(weight))
    found = [[scalar(form, packed, r, c) for c in range(259)] for r in range(20)]
    np.testing.assert_array_equal(np.array(found, np.float32), form.dequantise(packed, 20, 259))


def test_one_of_four_is_a_byte_shuffle_of_sixteen_activations() -> None:
    form = find("nm14_w4")
    weight, x = normal(16, 64, 7), np.random.default_rng(8).integers(-127, 128, 64)
    codes = form.quantise(weight)
    body = form.pack(codes)[0, 32:224].reshape(3, 16, 4).astype(int)  # positions, two vectors of codes
    total = np.zeros(16, int)
    for j in range(4):
        shuffle = (body[0] >> 2 * j & 3) + 4 * np.arange(4)
        values = (body[1 + j // 2] >> 4 * (j % 2) & 15) - 8
        total += (values * x[16 * j : 16 * j + 16][shuffle]).sum(axis=1)
    np.testing.assert_array_equal(total, codes.values.astype(int) @ x)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("form", [f for f in SCALED if f.name != "w8"], ids=lambda f: f.name)
def test_codes_off_the_grid_are_refused(form: Scaled) -> None:
    # every int8 is on the grid of w8
    codes = random_codes(form, 2, 128, 0)
    off = form.grid.high + form.grid.step
    values = codes.values.copy()
    values[1, np.flatnonzero(values[1])[0]] = off
    with pytest.raises(CheckpointError, match="not on the grid"):
        form.pack(Codes(values, codes.scales, form.group))


@sparse
def test_more_survivors_than_the_format_has_places_are_refused(form: Sparse) -> None:
    dense = Codes(np.full((1, 128), form.grid.high, np.int8), np.ones((1, 1), np.float16), 128)
    with pytest.raises(CheckpointError, match="survive"):
        form.pack(dense)


def test_a_grid_without_zero_wants_exactly_one_survivor() -> None:
    with pytest.raises(CheckpointError, match="not 1 of every 4"):
        find("nm14_w2").pack(Codes(np.zeros((1, 8), np.int8), np.ones((1, 1), np.float16), 128))


@scaled
def test_scales_of_another_shape_or_not_finite_are_refused(form: Scaled) -> None:
    codes = random_codes(form, 3, 130, 0)
    with pytest.raises(CheckpointError, match="scales"):
        form.pack(Codes(codes.values, codes.scales[:, :1][:2], form.group))
    with pytest.raises(CheckpointError, match="scales"):
        form.pack(Codes(codes.values, codes.scales, form.group + 1))
    with pytest.raises(CheckpointError, match="finite"):
        form.pack(Codes(codes.values, np.full_like(codes.scales, np.nan), form.group))
    with pytest.raises(CheckpointError, match="scales of shape"):
        form.quantise(codes.weights(), codes.scales[:2])


@names
def test_bytes_of_another_matrix_are_refused(form: Format) -> None:
    with pytest.raises(CheckpointError, match="expected"):
        form.unpack(np.zeros((1, 3), np.uint8), 4, 128)


def test_a_pattern_that_does_not_exist_is_refused() -> None:
    form = find("nm28_w4")
    with pytest.raises(CheckpointError, match="does not exist"):
        form.unpack(np.full(form.packed_shape(16, 128), 255, np.uint8), 16, 128)


# ---------------------------------------------------------------- adding one


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nm14_w4'"):
        find("nm14w4")


def test_a_plugin_adds_a_format_by_configuring_a_layout() -> None:
    two = Integer(name="w2_g64", group=64, grid=Grid(bits=2, low=-2, high=1, factors=(0.6, 0.8, 1.0)))
    sparse_two = OneOfFour(name="nm14_w2_g64", group=64, grid=Grid(bits=2, low=-3, high=3, step=2))
    assert find("w2_g64", [two, sparse_two]) is two
    assert (two.bpw, sparse_two.bpw) == (2.25, 1.25)
    for form in (two, sparse_two):
        codes = form.quantise(normal(19, 70))
        np.testing.assert_array_equal(form.dequantise(form.pack(codes), 19, 70), codes.weights())


@frozen(kw_only=True)
class Signs(Scaled):
    """One bit: the sign. Bit `lane` of a 16-bit word for every column."""

    name: str = "sign_g64"
    group: int = 64
    grid: Grid = field(factory=lambda: Grid(bits=1, low=-1, high=1, step=2, mean=True))

    @property
    def code_bytes(self) -> int:
        return self.group * 2

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        bits = (codes > 0).transpose(0, 2, 3, 1).reshape(codes.shape[0], codes.shape[2], self.group * LANES)
        return np.packbits(bits, axis=2, bitorder="little")

    def decode_codes(self, packed: np.ndarray) -> np.ndarray:
        bits = np.unpackbits(packed, axis=2, bitorder="little").reshape(*packed.shape[:2], self.group, LANES)
        return (bits.astype(np.int8) * 2 - 1).transpose(0, 3, 1, 2)


def test_a_plugin_adds_a_format_with_a_layout_of_its_own() -> None:
    form = Signs()
    assert form.bpw == 1.25
    weight = normal(18, 130)
    codes = form.quantise(weight)
    np.testing.assert_array_equal(form.dequantise(form.pack(codes), 18, 130), codes.weights())
    np.testing.assert_array_equal(codes.values > 0, weight > 0)


def test_two_formats_of_one_name_are_refused() -> None:
    with pytest.raises(DuplicateName, match="w8"):
        known([Integer(name="w8", group=64, grid=Grid(bits=8, low=-128, high=127))])
    assert known([FORMATS["w8"]]) == FORMATS
