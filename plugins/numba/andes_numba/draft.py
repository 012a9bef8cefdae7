"""A draft head beside a compiled model: passes of the same step over a layer or a few, with rows of its own.

A wrong guess costs time and changes no text. So matrices are int8 whatever the model's are, and rows are kept in its
precision.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict
from weakref import ref

import numpy as np
import torch
from andes_packing.formats import LANES, find
from torch import Tensor

from andes_sdk.errors import BackendUnavailable
from andes_sdk.runtime.tree import Step

from .few import FEW, forward_few
from .passes import NARROW, places
from .product import multiply_rows
from .simd import Tag
from .sizes import Sizes
from .step import Weights, padded, padded_rows
from .store import KVStore
from .weights import aligned

if TYPE_CHECKING:
    from .session import Compiled

FORMAT = "w8"
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
TIMED = 5
"""Passes of one row, of which the shortest counts."""


class HeadPlan(TypedDict):
    """A decoder of pre-norm layers, as `weights.DecoderPlan` has them, without biases and norms of heads.

    join: (D, taps * D) makes a row of those that enter some layers of the model; join_norm: the weight of a norm behind
    it, or None. sides: weights (D,) of two norms, or None: then q, k and v of the only layer read the normed embedding
    of a token and the normed row side by side, 2 D columns, in place of the row under `norm`. layers: of each the
    matrices by role, q, k, v, o, gate, up and down, and the weights of `norm` and `norm_mlp`. last: weight of the last
    norm. head: (vocabulary, D). theta: the base of rotary frequencies, which turn feature i with i + d / 2.
    """

    join: Tensor
    join_norm: Tensor | None
    sides: tuple[Tensor, Tensor] | None
    layers: Sequence[Mapping[str, Tensor]]
    last: Tensor
    head: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    eps: float


class HeadRows:
    """The head's rows of one conversation."""

    def __init__(self, sizes: Sizes, kv: str) -> None:
        self._sizes, self.store = sizes, KVStore(sizes, kv)

    def __len__(self) -> int:
        return int(self.store.counts[0, 0])

    def cut(self, count: int) -> None:
        """Forget the last rows."""
        self.store.counts -= count

    def keep_last(self, count: int) -> None:
        """Forget the oldest rows, all but so many."""
        size = len(self)
        if size > count:
            kept = [torch.arange(size - count, size)] * self._sizes.kv_heads
            for layer in range(self._sizes.layers):
                self.store.evict(layer, kept)

    def fork(self) -> HeadRows:
        """A copy."""
        made = HeadRows(self._sizes, self.store.kv)
        made.store.load(self.store.dump())
        return made


class CompiledHead:
    """A draft head in int8. Threads, kernels, activations and the precision of kept rows are the model's.

    Attributes:
        one: seconds of a pass with one row.
    """

    def __init__(self, compiled: Compiled, plan: HeadPlan) -> None:
        self._owner, self._plan = ref(compiled), plan  # whoever keeps heads by their model need not keep the model
        self.sizes = sizes = _sizes(plan)
        isa, _, mode, kv = compiled.tags
        self._format = Tag("format", FORMAT)
        self._tags = (isa, (self._format,) * 5, mode, kv)
        layers, head = [[_packed(one[role]) for role in ROLES] for one in plan["layers"]], _packed(plan["head"])
        self._join = _packed(plan["join"])
        # keys and values of rows of the model, for all layers in one product
        stacked = [one[role] for one in plan["layers"] for role in ("k", "v")]
        self._keys = None if plan["sides"] else _packed(torch.cat(stacked))
        self._arrays = [*(matrix for seven in layers for matrix in seven), head, self._join]
        self._arrays += [] if self._keys is None else [self._keys]
        norms = np.array([[_floats(one[name]) for name in ("norm", "norm_mlp")] for one in plan["layers"]], np.float32)
        none = np.zeros((sizes.layers, 2, 0), np.float32)
        self._weights = Weights(
            products=np.array([[(m.ctypes.data, len(m)) for m in seven] for seven in layers], np.int64),
            sizes=np.array([m.shape[1] for m in layers[0]], np.int64),
            head=np.array([[head.ctypes.data, len(head)]], np.int64),
            head_size=np.int64(head.shape[1]),
            norms=norms,
            head_norms=none,
            biases=none[:, 0],
            last=_floats(plan["last"]),
            eps=np.float32(plan["eps"]),
        )
        half = sizes.head // 2
        self._periods = (plan["theta"] ** (np.arange(half) / half)).astype(np.float32)
        self.one = self._timed()

    @property
    def _model(self) -> Compiled:
        model = self._owner()
        assert model is not None, "a session keeps its model"
        return model

    @property
    def facts(self) -> str:
        """For `explain()`."""
        return f"compiled, {FORMAT}: {sum(a.nbytes for a in self._arrays):,} bytes"

    def open(self) -> HeadRows:
        """No rows."""
        return HeadRows(self.sizes, self._tags[3].value)

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """(n, D) float32 inputs of the model."""
        return self._model.embed(torch.tensor(tokens))

    def joined(self, features: Tensor) -> Tensor:
        """(n, taps, D) rows of the model -> (n, D)."""
        rows = self._multiplied(self._join, features.flatten(1).numpy())[:, : self.sizes.width]
        norm = self._plan["join_norm"]
        return torch.from_numpy(rows if norm is None else _normed(rows, _floats(norm), self._plan["eps"]))

    # ------------------------------------------------------------ rows that follow one another

    def run(
        self, seen: Sequence[HeadRows], positions: Sequence[range], embeds: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New rows behind those of B conversations -> of each its last: own rows (B, D), logits (B, vocabulary).

        Args:
            positions: of each conversation, those of its rows. embeds, hidden: (T, D), one conversation after another.
        """
        assert self._plan["sides"] is not None
        width, eps, (left, right) = self.sizes.width, self._plan["eps"], self._plan["sides"]
        wide = np.zeros((len(embeds), padded(2 * width)), np.float32)
        wide[:, :width] = _normed(embeds.numpy(), _floats(left), eps)
        wide[:, width : 2 * width] = _normed(hidden.numpy(), _floats(right), eps)
        starts, inner = np.cumsum([0, *map(len, positions)]), hidden.numpy()
        own = np.empty((len(seen), width), np.float32)
        logits = np.empty((len(seen), self.sizes.vocab), np.float32)
        for group in grouped([len(p) for p in positions], FEW - 1):
            some = np.concatenate([np.arange(starts[who] + a, starts[who] + b) for who, a, b in group])
            where = [np.asarray(positions[who][a:b]) for who, a, b in group]
            ends = np.cumsum([b - a for _, a, b in group]) - 1
            whole = [n for n, (who, _, b) in enumerate(group) if b == len(positions[who])]
            first = int(ends[whole[0]]) if whole else len(some) - 1
            steps = [Step(torch.from_numpy(p), None) for p in where]
            out, rows, _ = self._pass([seen[who] for who, _, _ in group], steps, inner[some], wide[some], first)
            for (who, _, _), at in zip(group, where, strict=True):
                seen[who].store.added(len(at), at)
            for n in whole:
                own[group[n][0]], logits[group[n][0]] = rows[ends[n]], out[ends[n] - first]
        return torch.from_numpy(own), torch.from_numpy(logits)

    # ------------------------------------------------------------ a block that sees itself whole

    def note(self, seen: HeadRows, features: Tensor, positions: range) -> None:
        """Keys and values of (n, taps, D) rows of the model join a conversation's."""
        assert self._keys is not None
        sizes, count = self.sizes, len(features)
        both = self._multiplied(self._keys, self.joined(features).numpy())
        both = both[:, : 2 * sizes.layers * sizes.kv_heads * sizes.head]
        parts = both.reshape(count, sizes.layers, 2, sizes.kv_heads, sizes.head).transpose(2, 1, 3, 0, 4)
        cos, sin = self._angles(np.asarray(positions))
        low, high = np.split(parts[0], 2, axis=-1)
        turned = np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
        seen.store.put(turned, parts[1], np.asarray(positions))

    def block(self, seen: Sequence[HeadRows], starts: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks of `size` rows behind those of B conversations; nothing is kept.

        Args:
            starts: (B,) positions of first rows. rows: (B, size, D). -> (B, size, D) normed, (B, size, vocabulary)
        """
        normed, logits = [], []
        size = rows.shape[1]
        for one, start, some in zip(seen, starts, rows.numpy(), strict=True):
            where = torch.arange(start, start + size)
            step = Step(where, torch.ones(size, size, dtype=torch.bool))
            out, _, last = self._pass([one], [step], some, NARROW, 0)
            normed.append(torch.from_numpy(last))
            logits.append(torch.from_numpy(out))
        return torch.stack(normed), torch.stack(logits)

    # ------------------------------------------------------------ one pass

    def _pass(
        self, seen: Sequence[HeadRows], steps: Sequence[Step], rows: np.ndarray, wide: np.ndarray, first: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> logits (T - first, vocabulary) of the rows from `first` on, rows (T, D) before the last norm, and behind.

        The conversations' counts stay: whoever keeps the rows raises them.
        """
        sizes, model, count = self.sizes, self._model, len(rows)
        x = np.zeros((padded_rows(count), padded(sizes.width)), np.float32)
        x[:count, : sizes.width] = rows
        out = np.empty((padded_rows(count - first), -(-sizes.vocab // LANES) * LANES), np.float32)
        own = np.empty((1, count, sizes.width), np.float32)
        positions = np.concatenate([step.positions.numpy() for step in steps])
        store = places(seen, steps)
        with model.team.at_work():
            forward_few(
                *self._tags, sizes, self._weights, model.adapters.of([], []), store, x, count, *self._angles(positions),
                np.zeros((1, 1, 0), np.float32), first, np.array([sizes.layers], np.int64), own, out, wide,
                model.threads,
            )  # fmt: skip
        return out[: count - first, : sizes.vocab], own[0], x[:count, : sizes.width]

    def _angles(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) -> (T, d / 2) cosines and sines."""
        angles = positions[:, None].astype(np.float32) / self._periods
        return np.cos(angles), np.sin(angles)

    def _multiplied(self, packed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n, columns) -> (n, outputs and padding)."""
        count, columns = rows.shape
        x = np.zeros((padded_rows(count), padded(columns)), np.float32)
        x[:count, :columns] = rows
        y = np.empty((padded_rows(count), len(packed) * LANES), np.float32)
        isa, _, mode, _ = self._tags
        with self._model.team.at_work():
            multiply_rows(isa, self._format, mode, packed, columns, x, count, y, self._model.threads)
        return y[:count]

    def _timed(self) -> float:
        """Seconds of a pass of one row. The first compiles, or reads machine code."""
        width, best = self.sizes.width, np.inf
        features = torch.zeros(1, self._plan["join"].shape[1] // width, width)
        for _ in range(TIMED + 1):
            seen, start = self.open(), time.perf_counter()
            if self._plan["sides"]:
                self.run([seen], [range(1)], torch.zeros(1, width), self.joined(features))
            else:
                self.note(seen, features, range(1))
                self.block([seen], [1], torch.zeros(1, 2, width))
            best = min(best, time.perf_counter() - start)
        return float(best)


def grouped(counts: Sequence[int], most: int) -> Iterator[list[tuple[int, int, int]]]:
    """Rows of several conversations in their order, at most so many at once: (who, its first row, behind its last)."""
    group: list[tuple[int, int, int]] = []
    room = most
    for who, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + room)
            group.append((who, start, stop))
            room, start = room - (stop - start), stop
            if room == 0:
                yield group
                group, room = [], most
    if group:
        yield group


def _sizes(plan: HeadPlan) -> Sizes:
    """Of a head that the step can run.

    Raises:
        BackendUnavailable: it cannot.
    """
    vocab, width = plan["head"].shape
    why = [f"{n} is {v}, not a multiple of 16" for n, v in (("width", width), ("head_dim", plan["head_dim"])) if v % 16]
    if plan["sides"] and len(plan["layers"]) != 1:
        why.append("only a single layer can read two rows side by side")
    if why:
        fix = "use backend='torch'"
        raise BackendUnavailable("cannot run this draft head", who="numba", why="; ".join(why), fix=fix)
    return Sizes(
        layers=len(plan["layers"]), width=width, q_heads=plan["heads"], kv_heads=plan["kv_heads"],
        head=plan["head_dim"], inner=plan["layers"][0]["gate"].shape[0], vocab=vocab,
    )  # fmt: skip


def _floats(weight: Tensor) -> np.ndarray:
    return weight.detach().float().numpy()


def _packed(weight: Tensor) -> np.ndarray:
    layout = find(FORMAT)
    return aligned(layout.pack(layout.quantise(_floats(weight))))


def _normed(rows: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMSNorm of (n, D)."""
    scaled: np.ndarray = rows / np.sqrt(np.mean(rows * rows, axis=1, keepdims=True) + np.float32(eps)) * weight
    return scaled
