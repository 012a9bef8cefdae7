"""Bytes that conversations take, before they take them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import define, field

from andes_sdk.types import Inputs
from andes_serve.failures import Failure

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


@define(eq=False)
class Room:
    """Bytes for pictures of requests that the engine does not have yet; used on the event loop alone.

    Who is cancelled while a thread works for it gives its room back when the thread is done: see `give_after`.

    Attributes:
        limit: bytes in all. most: requests that may wait for room. taken: bytes in use.
    """

    limit: int
    most: int
    taken: int = 0
    _waiting: deque[tuple[int, asyncio.Future[None]]] = field(factory=deque)

    async def take(self, count: int) -> None:
        """Wait for room, in the order of arrival; who needs none waits for nobody.

        Raises:
            Failure: there will never be enough, or too many wait.
        """
        if count > self.limit:
            what = f"reading pictures and text may take {count} bytes, this server has {self.limit} for that"
            raise Failure(400, f"{what}: make them smaller", param="messages", code="memory_exceeded")
        if count and (self._waiting or self.taken + count > self.limit):
            if len(self._waiting) >= self.most:
                what = f"{len(self._waiting)} requests wait for their pictures or long texts to be read"
                raise Failure(429, what, kind="rate_limit_error", code="queue_full", wait=2)
            turn = (count, asyncio.get_running_loop().create_future())
            self._waiting.append(turn)
            try:
                await turn[1]
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                if turn[1].cancelled():
                    self._next()
                else:  # its turn had come
                    self.give(count)
                raise
        else:
            self.taken += count

    def give(self, count: int) -> None:
        """They are free again."""
        self.taken -= count
        self._next()

    def give_after(self, work: Future[Any], count: int) -> None:
        """They are free once this work on another thread is done; begun work cannot be stopped, other is dropped."""
        loop = asyncio.get_running_loop()

        def give(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(self.give, count)

        work.cancel()
        if work.done():
            self.give(count)
        else:
            work.add_done_callback(give)

    def _next(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.done():  # else it was cancelled, and does not know yet
                if self.taken + count > self.limit:
                    return
                self.taken += count
                turn.set_result(None)
            self._waiting.popleft()
