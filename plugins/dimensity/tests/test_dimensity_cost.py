"""Bytes derived by hand, and a fit that finds again what made its numbers."""

import pytest
from andes_dimensity.cost import Choice, Machine, Shape, cost, fitted, picture_bytes, picture_macs, what_if
from andes_dimensity.energy import DRAM, GIVEN, MAC, SRAM, Picojoules

from andes_sdk.errors import ConfigError

SHAPE = Shape(layers=2, width=8, query_heads=4, kv_heads=2, head=4, inner=16, vocab=100)


def test_weights_are_counted_by_hand():
    # q 8x16, o 16x8, k and v 8x8 each, gate, up and down 8x16 each
    assert SHAPE.body == 2 * (128 + 128 + 64 + 64 + 3 * 128)
    assert SHAPE.table == 800


def test_bytes_of_a_token_by_hand():
    one = cost(SHAPE, Choice(bits=4, head_bits=8, cache_bits=16, context=10), Machine(bandwidth=1e6))
    assert one.weights == SHAPE.body / 2
    assert one.head == 800
    # keys and values, two heads of four numbers, two bytes each, two layers, ten rows and the new one
    assert one.cache == 2 * (2 * 2 * 4 * 2) * 11
    assert one.seconds == pytest.approx(one.bytes / 1e6)
    assert one.memory == 2 * (one.weights + one.head) + 2 * 32 * 10


def test_without_the_unit_a_code_is_a_byte():
    small, wide = (cost(SHAPE, Choice(bits=4, unit=unit), Machine()) for unit in (True, False))
    assert wide.weights == 2 * small.weights


def test_drafts_share_a_pass():
    plain = cost(SHAPE, Choice(), Machine())
    drafted = cost(SHAPE, Choice(accepted=3.0, tree=8), Machine())
    assert drafted.weights == plain.weights / 3
    assert drafted.activations == pytest.approx(plain.activations * 8 / 3)


SIZES = [(2, 1e6), (4, 1e7), (8, 3e6), (6, 8e7), (12, 2e7)]


def test_the_fit_finds_what_made_the_times():
    made = {"w8": Machine(bandwidth=2e9, fixed=1e-4, per_layer=5e-5)}
    made["w4"] = Machine(bandwidth=5e8, fixed=1e-4, per_layer=5e-5)
    rows = [(f, n, b, m.fixed + n * m.per_layer + b / m.bandwidth) for f, m in made.items() for n, b in SIZES]
    found = fitted(rows)
    for form, one in made.items():
        assert found[form].bandwidth == pytest.approx(one.bandwidth, rel=1e-6)
        assert found[form].fixed == pytest.approx(1e-4, rel=1e-6)
        assert found[form].per_layer == pytest.approx(5e-5, rel=1e-6)


def test_a_format_of_one_row_has_the_overheads_of_the_others():
    made = Machine(bandwidth=2e9, fixed=1e-4, per_layer=5e-5)
    rows = [("w8", n, b, made.fixed + n * made.per_layer + b / made.bandwidth) for n, b in SIZES]
    found = fitted([*rows, ("w4", 4, 1e6, made.fixed + 4 * made.per_layer + 1e-3)])
    assert found["w4"].bandwidth == pytest.approx(1e9, rel=1e-6)


def test_overheads_are_never_below_nothing():
    (found,) = fitted(
        [("w8", 2, 1e6, 1e-3), ("w8", 2, 2e6, 3e-3), ("w8", 4, 4e6, 7e-3), ("w8", 8, 8e6, 15e-3)]
    ).values()
    assert found.fixed >= 0
    assert found.per_layer >= 0


def test_every_row_of_the_table_moves_less_or_says_why():
    rows = dict(what_if(SHAPE, Choice(), Machine()))
    plain = rows["as it is"].bytes
    assert rows["4-bit body"].bytes < plain
    assert rows["4-bit body, no unit"].bytes == plain
    assert rows["four times the context"].bytes > plain
    assert min(rows.values(), key=lambda one: one.bytes) is rows["1.8 bits, a quarter of an 8-bit cache, drafts"]


def test_a_picture_by_hand():
    assert picture_bytes({"width": 8, "heads": 2, "layers": 3}, 1000, 8, 16) == 1000 + 3 * 2 * 16 * (64 + 64)


def test_products_by_hand():
    one = cost(SHAPE, Choice(context=10), Machine())
    # every weight once; queries times keys and weights times values of 10 rows and the new one, 4 heads of 4 numbers
    assert one.macs == SHAPE.body + SHAPE.table + 2 * (2 * 4 * 4 * 11)
    assert cost(SHAPE, Choice(context=10, accepted=2.0), Machine()).macs == one.macs / 2
    assert picture_macs({"width": 8, "layers": 3}, 1000, 16) == 1000 * 16 + 2 * 3 * 8 * 16 * 16


def test_energy_by_hand():
    figures = Picojoules(dram=4.0, sram=0.5, mac=0.25)
    # 100 bytes are 800 bits: 4 pJ each from memory, 0.5 to write and 0.5 to read in a buffer
    assert figures.joules(100, 40) == pytest.approx((800 * 5.0 + 40 * 0.25) * 1e-12)
    assert Picojoules(dram=0, sram=0, mac=0).joules(1e9, 1e9) == 0


def test_every_figure_of_energy_is_told_with_its_source_or_as_given():
    told = Picojoules().assumed()
    for one in (DRAM, SRAM, MAC):
        assert any(f"{one.value:.3g} pJ" in line and one.source in line for line in told)
    own = Picojoules(dram=4.0).assumed()
    assert any("4 pJ" in line and GIVEN in line for line in own)
    assert not any(DRAM.source in line for line in own)
    with pytest.raises(ConfigError, match=r"is -1"):
        Picojoules(mac=-1.0)
