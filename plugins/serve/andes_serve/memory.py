"""Bytes that conversations take, before they take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define

from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.types import CachePolicy

ROOM = 1.25
"""A store of rows grows by a quarter at a time."""


@define(eq=False)
class Memory:
    """An account of KV rows and picture rows.

    Attributes:
        limit: bytes in all. taken: bytes promised to running requests. kept: bytes of prefixes that wait.
        row: bytes of one row of one layer's head. heads: of all layers. width: bytes of an input row.
    """

    limit: int
    row: float
    heads: int
    width: int
    policy: CachePolicy
    taken: int = 0
    kept: int = 0

    @classmethod
    def measured(cls, pipeline: Pipeline, limit: int) -> Memory:
        """From what a short prompt takes."""
        session = pipeline.session()
        try:
            session.prefill(pipeline.prepare("a"))
            stats = session.stats
        finally:
            session.close()
        heads = sum(len(layer) for layer in stats.rows)
        rows = sum(sum(layer) for layer in stats.rows)
        return cls(limit, stats.kv_bytes / rows, heads, 4 * pipeline.model.text.width, pipeline.policy)

    def rows(self, count: int) -> int:
        """Bytes of a conversation of so many tokens, under the cache policy."""
        held = count * self.heads
        budget = self.policy.budget(count)
        # while a chunk is read, its rows come on top of the budget
        held = held if budget is None else min(held, budget + self.heads * 1024)
        return int(held * self.row * ROOM)

    def needed(self, inputs: Inputs, answers: Sequence[int]) -> int:
        """Bytes that a prompt and its answers may take at most."""
        prompt = len(inputs.ids)
        pictures = sum(m.data.numel() * m.data.element_size() + sum(m.rows) * self.width for m in inputs.media.values())
        return sum(self.rows(prompt + n) for n in answers) + prompt * self.width + pictures

    def take(self, count: int) -> bool:
        """Promise so many bytes, if they are there."""
        if self.taken + self.kept + count > self.limit:
            return False
        self.taken += count
        return True

    def give(self, count: int) -> None:
        """They are free again."""
        self.taken -= count
