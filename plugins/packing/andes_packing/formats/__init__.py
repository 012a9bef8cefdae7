"""Formats: how compressed matrices are laid out in bytes. Pack, unpack, reference dequantise, bits; no kernels.

    codes = find("nm14_w4").quantise(weight)      # the plain baseline: magnitude, scale search, round to nearest
    packed = find("nm14_w4").pack(codes)          # (row blocks, bytes), what an artefact holds and a kernel streams

A compressor that trains makes `Codes` of its own and packs them with the same format.
"""

from __future__ import annotations

from collections.abc import Iterable

from andes_packing.formats.base import LANES, Format
from andes_packing.formats.dense import Half, Integer, Scaled
from andes_packing.formats.grid import Grid
from andes_packing.formats.sparse import OneOfFour, Sparse, ThreeOfFour, TwoOfEight
from andes_sdk.config import suggestion
from andes_sdk.errors import ConfigError, DuplicateName
from andes_sdk.types import Codes

_CUTS = (0.6, 0.68, 0.75, 0.81, 0.86, 0.9, 0.94, 0.97, 1.0)
"""Of the largest magnitude: what clipping a few outliers is worth at 4 bits."""

_NIBBLE = Grid(bits=4, low=-8, high=7, factors=_CUTS, both_signs=True)

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Half(),
        Integer(name="w8", group=128, grid=Grid(bits=8, low=-128, high=127, factors=(0.97, 0.985, 1.0))),
        Integer(name="w4_g32", group=32, grid=_NIBBLE),
        Integer(name="w4_g128", group=128, grid=_NIBBLE),
        Integer(
            name="ternary_g128",
            group=128,
            grid=Grid(bits=2, low=-1, high=1, mean=True, factors=(0.8, 1.0, 1.2, 1.4, 1.6, 1.9, 2.3)),
        ),
        OneOfFour(name="nm14_w4", group=128, grid=_NIBBLE),
        TwoOfEight(name="nm28_w4", group=128, grid=_NIBBLE),
        OneOfFour(
            name="nm14_w2",
            group=128,
            grid=Grid(bits=2, low=-3, high=3, step=2, factors=(0.45, 0.55, 0.65, 0.75, 0.85, 1.0)),
        ),
        ThreeOfFour(name="ternary34_g128", grid=Grid(bits=1, low=-1, high=1, step=2, mean=True)),
    )
}
"""The built-in formats by name."""


def known(extra: Iterable[Format] = ()) -> dict[str, Format]:
    """The built-in formats and those of plugins.

    Raises:
        DuplicateName: two formats of one name.
    """
    found = dict(FORMATS)
    for one in extra:
        if found.get(one.name, one) is not one:
            raise DuplicateName("two formats of this name", who=one.name, fix="rename the plugin's")
        found[one.name] = one
    return found


def find(name: str, extra: Iterable[Format] = ()) -> Format:
    """A format by name.

    Args:
        extra: formats of plugins.

    Raises:
        ConfigError: there is no such format. DuplicateName: two formats of one name.
    """
    formats = known(extra)
    if name not in formats:
        raise ConfigError(f"no format {name!r}", who="format", fix=suggestion(name, formats))
    return formats[name]


__all__ = [
    "FORMATS",
    "LANES",
    "Codes",
    "Format",
    "Grid",
    "Half",
    "Integer",
    "OneOfFour",
    "Scaled",
    "Sparse",
    "ThreeOfFour",
    "TwoOfEight",
    "find",
    "known",
]
