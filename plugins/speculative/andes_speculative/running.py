"""What runs a draft head: the backend of the model that it guesses for, where that can, else torch.

A compiled model that has `compile_head(plan)` is given the head's `blueprint()`. What it returns has the methods of
`PathRunner` or `BlockRunner`, whichever the kind of head needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from attrs import define, field, frozen
from torch import Tensor

from andes_sdk.errors import BackendUnavailable

from .block import Block
from .eagle import Eagle3, attention

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


class HeadRows(Protocol):
    """The head's rows of one conversation."""

    def __len__(self) -> int: ...

    def cut(self, count: int) -> None:
        """Forget the last rows."""

    def keep_last(self, count: int) -> None:
        """Forget the oldest rows, all but so many."""

    def fork(self) -> HeadRows:
        """A copy."""


class Runner(Protocol):
    """Runs a head.

    Attributes:
        one: seconds of a pass with one row, where they are known; else 0.0.
    """

    one: float

    @property
    def facts(self) -> str:
        """Where it runs, for `explain()`."""

    def open(self) -> Any:
        """No rows."""

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """(n, D) float32 inputs of the model."""


class PathRunner(Runner, Protocol):
    """Runs a head that goes ahead token by token."""

    def joined(self, features: Tensor) -> Tensor:
        """(n, taps, D) rows of the model -> (n, D)."""

    def run(
        self, seen: Sequence[Any], positions: Sequence[range], embeds: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New rows behind those of B conversations -> of each its last: own rows (B, D), logits (B, vocabulary).

        Args:
            positions: of each conversation, those of its rows. embeds, hidden: (T, D), one conversation after another.
        """


class BlockRunner(Runner, Protocol):
    """Runs a head that guesses blocks."""

    def note(self, seen: Any, features: Tensor, positions: range) -> None:
        """Keys and values of (n, taps, D) rows of the model join a conversation's."""

    def block(self, seen: Sequence[Any], starts: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks of `size` rows behind those of B conversations; nothing is kept.

        Args:
            starts: (B,) positions of first rows. rows: (B, size, D). -> (B, size, D) normed, (B, size, vocabulary)
        """


@define(eq=False)
class TorchRows:
    """Of each layer keys and values (Hkv, n, d). Nothing writes into the tensors, so copies share them."""

    parts: list[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return self.parts[0][0].shape[1]

    def _only(self, rows: slice) -> None:
        self.parts = [(k[:, rows], v[:, rows]) for k, v in self.parts]

    def cut(self, count: int) -> None:
        """Forget the last rows."""
        self._only(slice(0, len(self) - count))

    def keep_last(self, count: int) -> None:
        """Forget the oldest rows, all but so many."""
        if len(self) > count:
            self._only(slice(len(self) - count, None))

    def fork(self) -> TorchRows:
        """A copy."""
        return TorchRows(list(self.parts))

    def add(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New rows of a layer -> all of them."""
        keys, values = self.parts[layer]
        self.parts[layer] = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
        return self.parts[layer]


@frozen(eq=False)
class OnTorch:
    """Runs a head of either kind on torch, on the CPU."""

    head: Any
    model: VisionLanguageModel
    facts: str = "on torch"
    one: float = 0.0

    def open(self) -> TorchRows:
        """No rows."""
        none = torch.zeros(self.head.shape.kv_heads, 0, self.head.shape.head_dim)
        return TorchRows([(none, none)] * getattr(self.head.shape, "layers", 1))

    def embed(self, tokens: Sequence[int]) -> Tensor:
        """(n, D) float32 inputs of the model."""
        ids = torch.tensor(tokens, device=self.model.device)
        return self.model.llm.embed(ids).float().cpu()

    def joined(self, features: Tensor) -> Tensor:
        """(n, taps, D) rows of the model -> (n, D)."""
        head: Eagle3 = self.head
        return head.joined(features)

    def run(
        self, seen: Sequence[TorchRows], positions: Sequence[range], embeds: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `PathRunner.run`; attention runs for each conversation alone."""
        counts = [len(p) for p in positions]

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            for one, qi, ki, vi in zip(seen, *(x.split(counts, dim=1) for x in (q, k, v)), strict=True):
                before, count = len(one), qi.shape[1]
                mask = torch.ones(count, before + count, dtype=torch.bool).tril(before)
                keys, values = one.add(0, ki, vi)
                out.append(attention(qi, keys, values, mask))
            return torch.cat(out)

        head: Eagle3 = self.head
        rows = head(embeds, hidden, torch.tensor([p for part in positions for p in part]), attend)
        ends = rows[torch.tensor(counts).cumsum(0) - 1]
        return ends, head.logits(ends)

    def note(self, seen: TorchRows, features: Tensor, positions: range) -> None:
        """As `BlockRunner.note`."""
        head: Block = self.head
        for layer, new in enumerate(head.context(features, torch.tensor(positions))):
            seen.add(layer, *new)

    def block(self, seen: Sequence[TorchRows], starts: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
        """As `BlockRunner.block`."""
        head: Block = self.head
        count, size, _ = rows.shape

        def see(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            for one, qi, ki, vi in zip(seen, *(x.split(size, dim=1) for x in (q, k, v)), strict=True):
                keys, values = (torch.cat(pair, dim=1) for pair in zip(one.parts[layer], (ki, vi), strict=True))
                out.append(attention(qi, keys, values, torch.ones(size, keys.shape[1], dtype=torch.bool)))
            return torch.cat(out)

        normed = head.normed(rows.flatten(0, 1), torch.tensor(starts), see)
        return normed.view(count, size, -1), head.head(normed).view(count, size, -1)


@define(eq=False)
class Runners:
    """What runs a head beside each compiled model.

    Attributes:
        torch: what does where nothing else can. last: the runner that was asked for last.
    """

    head: Any
    torch: OnTorch
    last: Any = None
    _made: WeakKeyDictionary[Any, Any] = field(factory=WeakKeyDictionary, init=False)

    def of(self, compiled: Any) -> Any:
        """The runner beside a compiled model; made the first time."""
        build: Callable[[Any], Any] | None = getattr(compiled, "compile_head", None)
        if build is None:
            self.last = self.torch
        elif compiled in self._made:
            self.last = self._made[compiled]
        else:
            try:
                self.last = build(self.head.blueprint())
            except BackendUnavailable as error:
                self.last = OnTorch(self.head, self.torch.model, f"on torch: {error.why}")
            self._made[compiled] = self.last
        return self.last


def runners(head: Any, model: VisionLanguageModel) -> Runners:
    """For a head of either kind."""
    return Runners(head, OnTorch(head, model))
