"""Numbers into ggml's types: without loss where they lie on the type's grid, else with scales of least squares.

A block is 32 weights (Q8_0, Q4_0) or 256 (TQ1_0, TQ2_0) with one float16 scale. Weights that came from codes on such a
grid, as our packed formats and quantisation-aware training leave them, get those very codes back (`exact`).
"""

from __future__ import annotations

import gguf
import numpy as np
from andes_packing.formats.grid import Grid, fit, half
from attrs import frozen
from numpy.typing import NDArray

from andes_sdk.errors import CheckpointError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

CHUNK_WEIGHTS = 1 << 20
"""Weights worked on at once."""
SAMPLE = 256
"""Blocks that are tried first: weights that are on a grid at all are so everywhere."""

GRIDS = {
    "Q8_0": Grid(bits=8, low=-128, high=127, factors=(0.97, 0.985, 1.0)),
    "Q4_0": Grid(bits=4, low=-8, high=7, factors=(0.6, 0.68, 0.75, 0.81, 0.86, 0.9, 0.94, 0.97, 1.0), both_signs=True),
    "TQ1_0": Grid(bits=2, low=-1, high=1, mean=True, factors=(0.8, 1.0, 1.2, 1.4, 1.6, 1.9, 2.3)),
    "TQ2_0": Grid(bits=2, low=-1, high=1, mean=True, factors=(0.8, 1.0, 1.2, 1.4, 1.6, 1.9, 2.3)),
}
SMALLEST_FIRST = ("TQ1_0", "Q4_0", "Q8_0", "F16", "BF16", "F32")
"""What `auto` tries; TQ2_0 is lossless where TQ1_0 is, and larger."""


@frozen(kw_only=True)
class Encoded:
    """A tensor as a file holds it.

    Attributes:
        kind: the type's name. data: bytes of each row, or numbers for F32 and F16.
        max_error: largest |written - given|. relative_error: root of summed squares, over that of the weights.
    """

    kind: str
    data: NDArray[np.generic]
    max_error: float
    relative_error: float

    @property
    def lossless(self) -> bool:
        """Whether what is read back equals what was given, number by number."""
        return self.max_error == 0


def block_of(kind: str) -> int:
    """Columns that a row must be a multiple of."""
    return int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0])


def encode(x: Floats, kind: str, who: str) -> Encoded:
    """(rows, cols) or (n,) float32 -> a type; `auto` is the smallest without loss.

    The errors are measured on what `gguf` reads back.

    Raises:
        CheckpointError: numbers that are not finite or too large for the type, or rows that are not whole blocks.
    """
    if not np.isfinite(x).all():
        raise CheckpointError("weights that are not finite", who=who, fix="check the checkpoint")
    if kind == "auto":
        whole = [k for k in SMALLEST_FIRST if x.shape[-1] % block_of(k) == 0]
        return _measured(x, next(k for k in whole if on_grid(x, k)), who)
    if x.shape[-1] % block_of(kind):
        why = f"its rows of {x.shape[-1]} are not whole blocks of {block_of(kind)}"
        raise CheckpointError(f"cannot be {kind}", who=who, why=why, fix="choose Q8_0, Q4_0, F16 or auto")
    return _measured(x, kind, who)


def on_grid(x: Floats, kind: str) -> bool:
    """Whether a type holds these numbers without loss."""
    if kind == "F32":
        return True
    if kind == "F16":
        return bool(np.array_equal(half(x), x))
    if kind == "BF16":
        return not (x.view(np.uint32) & 0xFFFF).any()
    blocks = x.reshape(-1, block_of(kind))
    parts = [
        blocks[:SAMPLE],
        *(blocks[i : i + CHUNK_WEIGHTS // 32] for i in range(0, len(blocks), CHUNK_WEIGHTS // 32)),
    ]
    return all(exact(part, GRIDS[kind])[1].all() for part in parts)


def exact(x: Floats, grid: Grid) -> tuple[Floats, NDArray[np.bool_]]:
    """(n, k) blocks -> float16-valued scales (n,), and for which blocks code * scale is every weight to the bit.

    The largest weight of a block is some code of the grid times the scale: each code is tried.
    """
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale, found = np.zeros_like(peak), peak == 0
    for code in sorted((c for c in range(grid.low, grid.high + 1) if c), key=abs, reverse=True):
        guess = peak / np.float32(code)
        left = np.flatnonzero(~found & (guess != 0) & (half(guess) == guess))
        if left.size:  # a few columns refuse most guesses
            left = left[_fits(x[left, :8], guess[left], grid)]
        if left.size:
            left = left[_fits(x[left], guess[left], grid)]
            scale[left], found[left] = guess[left], True
    return scale, found


def _fits(x: Floats, scale: Floats, grid: Grid) -> NDArray[np.bool_]:
    codes = grid.round(x, scale)
    same: NDArray[np.bool_] = (codes * scale[:, None] == x).all(axis=1)
    return same


def _measured(x: Floats, kind: str, who: str) -> Encoded:
    rows = x.reshape(-1, x.shape[-1])
    step = max(1, CHUNK_WEIGHTS // x.shape[-1])
    number = gguf.GGMLQuantizationType[kind]
    written, worst, error, total = [], 0.0, 0.0, 0.0
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        with np.errstate(over="ignore"):
            data = _blocks(part, kind, who) if kind in GRIDS else gguf.quants.quantize(part, number)
            off = gguf.quants.dequantize(data, number).astype(np.float32) - part
        if not np.isfinite(off).all():
            raise CheckpointError(f"weights too large for {kind}", who=who, fix="choose BF16 or F32")
        worst = max(worst, float(np.abs(off).max(initial=0)))
        error += float(np.square(off, dtype=np.float64).sum())
        total += float(np.square(part, dtype=np.float64).sum())
        written.append(data)
    data = np.concatenate(written)
    relative = (error / total) ** 0.5 if total else 0.0
    return Encoded(kind=kind, data=data.reshape(*x.shape[:-1], -1), max_error=worst, relative_error=relative)


def _blocks(rows: Floats, kind: str, who: str) -> Bytes:
    """(rows, cols) -> (rows, bytes)."""
    grid, x = GRIDS[kind], rows.reshape(-1, block_of(kind))
    scale, found = np.zeros(len(x), np.float32), np.zeros(len(x), bool)
    if exact(x[:SAMPLE], grid)[1].all():
        scale, found = exact(x, grid)
    if not found.all():
        scale[~found] = fit(x[~found], grid, search=True, who=who)
    codes = grid.round(x, scale).astype(np.int8)
    head = scale.astype("<f2")[:, None].view(np.uint8)  # (n, 2)
    if kind == "Q8_0":
        made = np.concatenate([head, codes.view(np.uint8)], axis=1)
    elif kind == "Q4_0":  # the two halves of a block share bytes
        stored = (codes + np.int8(8)).astype(np.uint8)
        made = np.concatenate([head, stored[:, :16] | stored[:, 16:] << np.uint8(4)], axis=1)
    else:  # gguf takes the largest magnitude for the scale, and finds these codes
        made = gguf.quants.quantize(codes * scale[:, None], gguf.GGMLQuantizationType[kind])
    return made.reshape(len(rows), -1)
