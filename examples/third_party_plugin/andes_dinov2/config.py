"""The sizes of the encoder."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Sizes:
    """Sizes of a DINOv2 encoder; the defaults are the published small one.

    Attributes:
        width: features per patch, a multiple of `heads`.
        table_side: rows (and columns) of the learned position table: training size / patch size, 518 / 14.
    """

    width: int = 384
    layers: int = 12
    heads: int = 6
    inner: int = 1536
    patch_size: int = 14
    table_side: int = 37
    norm_eps: float = 1e-6


PRESETS = {"small": Sizes(), "tiny": Sizes(width=32, layers=2, heads=2, inner=64, table_side=4)}
"""Preset -> sizes; `tiny` is for tests and has no published weights."""
