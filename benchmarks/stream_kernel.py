"""Reading memory, and multiplying bytes, as fast as the machine can: no decoder can beat either."""

from __future__ import annotations

from andes_numba.isa import dot4
from andes_numba.machine import choose_kernels
from andes_numba.simd import FOUR, NARROW, Tag, add_i, load_i, splat_i, store_f, zeros_i
from numba import njit, prange

DOTS = 12
"""Vectors of 64 products in a turn of `multiply`."""
_ISA, _LANES = Tag("isa", choose_kernels("auto")[0]), Tag("rows", DOTS)


@njit(parallel=True, nogil=True, cache=True)
def read(words: int, count: int, sums: int, threads: int) -> None:
    """Add `count` runs of 256 bytes at address `words` up, four vectors at a time."""
    for n in prange(threads):
        total = zeros_i(FOUR)
        for i in range(n * count // threads, (n + 1) * count // threads):
            total = add_i(total, load_i(FOUR, words + 256 * i, 64))
        store_f(sums + 256 * n, 64, total)


@njit(parallel=True, nogil=True)
def multiply(turns: int, sums: int, threads: int) -> None:
    """Every thread adds so many times `DOTS` vectors of products of bytes; sums: 2048 bytes a thread."""
    for n in prange(threads):
        total, values = zeros_i(_LANES), load_i(_LANES, sums + 2048 * n, 64)
        for i in range(turns):
            total = dot4(_ISA, NARROW, total, splat_i(i), values)
        store_f(sums + 2048 * n, 64, total)
