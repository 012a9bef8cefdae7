"""Formats: nothing is lost in bytes, and bits are counted as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from andes_packing.formats import FORMATS, Format
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

KIND = "formats"
COUNTS = {KIND: 3}
"""Kind -> number of checks; the kit compares."""


def _formats(subject: Subject) -> list[Any]:
    return subject.objects("andes_formats", Format)


@check(KIND, "every format has a name of its own")
def _format_names(subject: Subject) -> None:
    for one in _formats(subject):
        require(one.name not in FORMATS, f"format {one.name!r} has the name of one of ours")


@check(KIND, "what is packed is dequantised without loss, whatever the shape")
def _format_lossless(subject: Subject) -> None:
    for one in _formats(subject):
        for rows, cols in ((1, 1), (17, one.group + 3), (16, 2 * one.group), (3, 0), (0, 5)):
            weight = np.random.default_rng(rows).normal(size=(rows, cols)).astype(np.float32)
            codes = one.quantise(weight)
            packed = one.pack(codes)
            require(packed.shape == one.packed_shape(rows, cols), f"format {one.name!r} packs {rows}x{cols} otherwise")
            again = one.dequantise(packed, rows, cols)
            exact = np.array_equal(again, codes.weights())
            require(exact, f"format {one.name!r} does not give back what it packed at {rows}x{cols}")


@check(KIND, "the bits per weight that it states are those of its bytes")
def _format_bits(subject: Subject) -> None:
    for one in _formats(subject):
        rows, cols = 32, 4 * one.group
        packed = one.pack(one.quantise(np.ones((rows, cols), np.float32)))
        stated, real = one.type_bpw(rows, cols), packed.nbytes * 8 / (rows * cols)
        require(stated == real, f"format {one.name!r} states {stated} bits per weight, its bytes are {real}")
