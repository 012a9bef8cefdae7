"""Reading memory as fast as it comes, which no decoder can beat."""

from __future__ import annotations

from andes_numba.simd import FOUR, add_i, load_i, store_f, zeros_i
from numba import njit, prange


@njit(parallel=True, nogil=True, cache=True)
def read(words: int, count: int, sums: int, threads: int) -> None:
    """Add `count` runs of 256 bytes at address `words` up, four vectors at a time."""
    for n in prange(threads):
        total = zeros_i(FOUR)
        for i in range(n * count // threads, (n + 1) * count // threads):
            total = add_i(total, load_i(FOUR, words + 256 * i, 64))
        store_f(sums + 256 * n, 64, total)
