"""Sizes of a Qwen3, which kernels, memory and adapters share."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Of a Qwen3."""

    layers: int
    width: int
    q_heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int
