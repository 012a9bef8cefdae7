"""Grids of codes, and the choice of a scale for a group of weights.

The scale of a group is chosen without data: several trial scales, for the codes of each the scale of least squares,
and the best of them. The plain choice always competes, so the search never has the larger squared error.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError

Floats = NDArray[np.float32]


@frozen(kw_only=True)
class Grid:
    """Evenly spaced codes low, low + step … high, stored in `bits` bits as 0, 1 … .

    Attributes:
        factors: trial scales of the search, as multiples of the plain scale.
        mean: the plain scale is the mean magnitude (the ternary rule of BitNet b1.58); otherwise the largest
            magnitude falls on `high`.
        both_signs: try negative scales too, which put the largest magnitude on the longer side of the grid.
    """

    bits: int
    low: int
    high: int
    step: int = 1
    factors: tuple[float, ...] = (1.0,)
    mean: bool = False
    both_signs: bool = False

    def plain(self, x: Floats) -> Floats:
        """(n, k) weights of n groups -> (n,) scales without a search, representable in float16."""
        magnitude = np.abs(x)
        scale = magnitude.mean(axis=1) if self.mean else magnitude.max(axis=1, initial=0) / self.high
        return half(scale)

    def round(self, x: Floats, scale: Floats) -> Floats:
        """(n, k) weights and (n,) scales -> nearest codes, as floats."""
        # a scale of zero has codes of zero, or the ones next to it where the grid has no zero
        inverse: Floats = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        if self.step == 1:
            codes: Floats = x * inverse[:, None]
            np.rint(codes, out=codes)
        else:
            codes = x * (inverse / np.float32(self.step))[:, None]
            codes -= self.low / self.step
            np.rint(codes, out=codes)
            codes *= self.step
            codes += self.low
        return np.clip(codes, self.low, self.high, out=codes)

    def stored(self, codes: NDArray[np.int8], who: str) -> NDArray[np.uint8]:
        """Codes -> what is stored of them.

        Raises:
            CheckpointError: a code that is not on the grid.
        """
        wide = codes.astype(np.int16) - self.low
        inside = not codes.size or (codes.min() >= self.low and codes.max() <= self.high)
        if not inside or (self.step > 1 and (wide % self.step).any()):
            raise CheckpointError(
                "codes that are not on the grid", who=who, fix=f"use {self.low} to {self.high} in steps of {self.step}"
            )
        return (wide // self.step if self.step > 1 else wide).astype(np.uint8)

    def codes(self, stored: NDArray[np.uint8]) -> NDArray[np.int8]:
        """The inverse of `stored`."""
        return (stored.astype(np.int16) * self.step + self.low).astype(np.int8)


def half(scale: Floats) -> Floats:
    """The nearest float16, as float32; infinite where it is too large."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16).astype(np.float32)


def fit(x: Floats, grid: Grid, *, search: bool, who: str, real: NDArray[np.bool_] | None = None) -> Floats:
    """Scales for n groups of k weights -> (n,), representable in float16.

    Args:
        real: (n, k) False at padding that must not count; None where padding is harmless.

    Raises:
        CheckpointError: weights too large for a float16 scale.
    """
    plain = grid.plain(x)
    if not np.isfinite(plain).all():
        raise CheckpointError("weights too large for a float16 scale", who=who, fix="check the checkpoint")
    if not search or not x.size:
        return plain
    start, gain, best = plain, np.zeros_like(plain), plain.copy()
    if grid.both_signs:
        extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
        start = np.where(extreme > 0, -plain, plain)
    for factor in (*grid.factors, *(-f for f in grid.factors if grid.both_signs)):
        codes = grid.round(x, start * np.float32(factor))
        if real is not None:
            codes *= real
        dot = np.einsum("nk,nk->n", x, codes)
        norm = np.einsum("nk,nk->n", codes, codes)
        scale = np.divide(dot, norm, out=np.zeros_like(dot), where=norm > 0)
        won = dot * scale  # by how much this scale lowers the squared error against all-zero weights
        better = won > gain
        gain[better], best[better] = won[better], scale[better]
    best = half(best)
    best[~np.isfinite(best)] = 0.0
    # rounding the scale to float16, and the codes to the scale, may undo a small gain: compare what is stored
    return np.where(_error(x, best, grid, real) < _error(x, plain, grid, real), best, plain)


def _error(x: Floats, scale: Floats, grid: Grid, real: NDArray[np.bool_] | None) -> Floats:
    """Squared error of each group, (n,)."""
    off = grid.round(x, scale)
    off *= scale[:, None]
    off -= x
    if real is not None:
        off *= real
    error: Floats = np.einsum("nk,nk->n", off, off)
    return error
