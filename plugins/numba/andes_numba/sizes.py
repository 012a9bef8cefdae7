"""Sizes of a decoder, which kernels, memory and adapters share."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Of a decoder."""

    layers: int
    width: int
    q_heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int
