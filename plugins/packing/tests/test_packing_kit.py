"""The checks of formats catch planted bugs, and pass what is right."""

import pytest
from andes_packing.formats import Grid, Integer
from andes_packing.testing.reference import ReferenceFormat
from attrs import frozen

from andes_sdk import hookimpl
from andes_sdk.testing import run_checks


def formats_with(made):
    @frozen(eq=False, kw_only=True)
    class Formats(ReferenceFormat):
        @hookimpl
        def andes_formats(self):
            return [made]

    return {r.id: r for r in run_checks(Formats(), kinds=["formats"])}


class ForgetsTheLastRow(Integer):
    def decode(self, packed):
        values, scales = super().decode(packed)
        values = values.copy()
        values[:, -1] = 0
        return values, scales


class CountsNoScales(Integer):
    def type_bpw(self, rows, cols, *, memory=False):
        return float(self.grid.bits)


NIBBLE = Grid(bits=4, low=-8, high=7)


@pytest.mark.parametrize(
    ("made", "check"),
    [
        (Integer(name="w8", group=64, grid=NIBBLE), "every format has a name of its own"),
        (
            ForgetsTheLastRow(name="x", group=64, grid=NIBBLE),
            "what is packed is dequantised without loss, whatever the shape",
        ),
        (CountsNoScales(name="x", group=64, grid=NIBBLE), "the bits per weight that it states are those of its bytes"),
    ],
    ids=["taken name", "lossy", "wrong bits"],
)
def test_a_planted_bug_in_a_format_fails_the_check_that_names_it(made, check):
    results = formats_with(made)
    assert [name for name, r in results.items() if r.status == "failed"] == [f"formats: {check}"]


def test_the_reference_format_passes():
    assert {r.status for r in run_checks(ReferenceFormat, kinds=["formats"])} == {"passed"}
