"""What a token and a picture cost: bytes that move, and the time that takes where moving them is what takes time.

    seconds = fixed + layers * per_layer + bytes / bandwidth

On the phone the bandwidth is LPDDR5X's 85 GB/s and both overheads are unknown: they are 0, so that times are lower
bounds. On this machine they are fitted to decode times of the backend "numba" (`benchmarks/dimensity_cost.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

PHONE = 85e9
"""Bytes per second of LPDDR5X as Dimensity 9500 has it."""

REPORTED = {"memory": -30.9, "speed": 45.0}
"""Percent that the AndesVL report (arXiv 2510.11496) gives for its own compression on Dimensity 9500."""


@frozen(kw_only=True)
class Shape:
    """Sizes of a language model."""

    layers: int
    width: int
    query_heads: int
    kv_heads: int
    head: int
    inner: int
    vocab: int

    @property
    def body(self) -> int:
        """Weights of the layers' matrices."""
        attention = self.width * self.head * (2 * self.query_heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.inner)

    @property
    def table(self) -> int:
        """Weights of the LM head."""
        return self.vocab * self.width


@frozen(kw_only=True)
class Choice:
    """What may be changed.

    Attributes:
        bits: of a weight of the body, as it lies in memory, scales included. head_bits: of the LM head.
        cache_bits: of a number of the cache. context: rows of the cache that are read.
        accepted: tokens that a pass gives, 1 without drafts. tree: rows of a pass.
        unit: whether codes below 4 bits move as they are (a decompression unit), or as a byte each.
    """

    bits: float = 8.0
    head_bits: float = 8.0
    cache_bits: int = 16
    context: int = 1024
    accepted: float = 1.0
    tree: int = 1
    unit: bool = True

    def moved(self, bits: float) -> float:
        """Bits that move for a weight: without the unit int4 is a byte as well."""
        return bits if self.unit or bits >= 8 else 8.0


@frozen(kw_only=True)
class Machine:
    """What moves bytes. fixed and per_layer in seconds; bandwidth in bytes per second."""

    bandwidth: float = PHONE
    fixed: float = 0.0
    per_layer: float = 0.0


@frozen(kw_only=True)
class Cost:
    """Of one token: bytes by what moves, products, and seconds; memory is what stays."""

    weights: float
    head: float
    cache: float
    activations: float
    seconds: float
    memory: float
    macs: float

    @property
    def bytes(self) -> float:
        """All that move for a token."""
        return self.weights + self.head + self.cache + self.activations


def cost(shape: Shape, choice: Choice, machine: Machine, *, signatures: int = 2) -> Cost:
    """Of one token.

    signatures: graphs that hold the weights: each has a copy of its own in the NPU's memory.
    """
    weights = shape.body * choice.moved(choice.bits) / 8
    head = shape.table * choice.moved(choice.head_bits) / 8
    row = 2 * shape.kv_heads * shape.head * choice.cache_bits / 8
    cache = shape.layers * row * (choice.context + choice.tree)
    each = 2 * (6 * shape.width + 2 * shape.inner + 2 * (shape.query_heads + 2 * shape.kv_heads) * shape.head)
    activations = choice.tree * (shape.layers * each + 2 * shape.vocab)
    moved = weights + head + cache + activations
    seconds = machine.fixed + shape.layers * machine.per_layer + moved / machine.bandwidth
    macs = choice.tree * (
        shape.body + shape.table + 2 * shape.layers * shape.query_heads * shape.head * (choice.context + choice.tree)
    )
    n = choice.accepted
    return Cost(
        weights=weights / n, head=head / n, cache=cache / n, activations=activations / n, seconds=seconds / n,
        memory=signatures * (weights + head) + shape.layers * row * choice.context, macs=macs / n,
    )  # fmt: skip


def picture_bytes(vision: Mapping[str, Any], weights: int, bits: float, patches: int) -> float:
    """Of one picture: the encoder's weights once, and what its blocks write and read, int16."""
    each = 2 * patches * (8 * vision["width"] + 2 * patches * vision["heads"])
    return float(weights * bits / 8 + vision["layers"] * each)


def picture_macs(vision: Mapping[str, Any], weights: int, patches: int) -> float:
    """Of one picture: every weight once for each patch, and attention of all patches to all."""
    return float(weights * patches + 2 * vision["layers"] * vision["width"] * patches**2)


def what_if(shape: Shape, base: Choice, machine: Machine) -> list[tuple[str, Cost]]:
    """One change at a time, and all of them together."""
    changes: dict[str, dict[str, Any]] = {
        "as it is": {}, "4-bit body": {"bits": 4.0}, "4-bit body, no unit": {"bits": 4.0, "unit": False},
        "1.8 bits (1:4 sparse), a unit that unpacks it": {"bits": 1.8},
        "cache of a quarter": {"context": base.context // 4}, "8-bit cache": {"cache_bits": 8},
        "four times the context": {"context": base.context * 4},
        "drafts: 3 of a tree of 8": {"accepted": 3.0, "tree": 8},
    }  # fmt: skip
    rows = [(name, cost(shape, evolve(base, **change), machine)) for name, change in changes.items()]
    every = evolve(base, bits=1.8, context=base.context // 4, cache_bits=8, accepted=3.0, tree=8)
    return [*rows, ("1.8 bits, a quarter of an 8-bit cache, drafts", cost(shape, every, machine))]


def fitted(rows: Sequence[tuple[str, int, float, float]]) -> dict[str, Machine]:
    """(format, layers, bytes, seconds) of measured decode steps -> a machine for each format, of least squared relative
    error over all of them.

    A bandwidth belongs to a format, as its kernels do; overheads belong to the code around them, and are one for all.
    Overheads below 0 are left out and the rest fitted again.
    """
    import numpy as np

    forms = list(dict.fromkeys(form for form, *_ in rows))
    used = [True, True] + [True] * len(forms)
    table = np.array([[1.0, n, *(b if form == f else 0.0 for f in forms)] for form, n, b, _ in rows])
    table /= np.array([[s] for *_, s in rows])
    while True:
        columns = [i for i, one in enumerate(used) if one]
        found = np.zeros(len(used))
        found[columns] = np.linalg.lstsq(table[:, columns], np.ones(len(rows)), rcond=None)[0]
        negative = [i for i in (0, 1) if used[i] and found[i] < 0]
        if not negative:
            break
        used[negative[0]] = False
    return {
        form: Machine(bandwidth=1 / max(found[2 + i], 1e-15), fixed=found[0], per_layer=found[1])
        for i, form in enumerate(forms)
    }


ASSUMED = (
    "every weight moves once per pass, and nothing else is in the way: times are lower bounds",
    "85 GB/s are reached in full; the rest of the phone moves nothing",
    "each graph keeps a copy of the weights (a trial with the compiler's plugin showed one per signature)",
    "1.8 bits cannot be written for LiteRT: that row is what a unit that unpacks it would move",
)
"""Printed beside every prediction."""
