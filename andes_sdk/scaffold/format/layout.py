"""The format: a grid of codes, and the byte layout of andes-packing for integers on it.

A layout of your own subclasses `andes_packing.formats.Format`: say the bytes of a group, how to round to the grid, and
how values and scales become bytes and come back (`encode`, `decode`). The kit checks that nothing is lost.
"""

from __future__ import annotations

from andes_packing.formats import Format, Grid, Integer


def rows_of_bytes(name: str, group: int) -> Format:
    """Codes from -127 to 127 in a byte each; the largest magnitude of a group falls on 127, or a little outside."""
    return Integer(name=name, group=group, grid=Grid(bits=8, low=-127, high=127, factors=(0.98, 1.0)))
