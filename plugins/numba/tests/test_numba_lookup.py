"""Embeddings from packed bytes, against the formats' own dequantisation."""

from __future__ import annotations

import numpy as np
import pytest
from andes_numba import FORMATS
from andes_numba.lookup import look_up
from andes_numba.simd import Tag
from andes_packing.formats import find


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (40, 96), (33, 257), (16, 1024)])
def test_rows_have_the_bits_that_the_format_dequantises_to(name, rows, columns):
    form, rng = find(name), np.random.default_rng(rows)
    packed = form.pack(form.quantise(rng.standard_normal((rows, columns)).astype(np.float32)))
    ids = rng.integers(0, rows, 7)
    found = np.full((7, columns), np.nan, np.float32)

    look_up(Tag("format", name), packed, ids, found)

    assert np.array_equal(found, form.dequantise(packed, rows, columns)[ids])


def test_no_tokens_are_no_rows():
    form = find("w8")
    packed = form.pack(form.quantise(np.ones((16, 128), np.float32)))
    found = np.empty((0, 128), np.float32)

    look_up(Tag("format", "w8"), packed, np.zeros(0, np.int64), found)

    assert found.shape == (0, 128)
