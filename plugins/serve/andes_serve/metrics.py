"""Figures for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from andes_serve.jobs import Usage
    from andes_serve.memory import Memory

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What `/metrics` shows; each server has its own."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self._now: tuple[int, ...] = ()
        self._requests = Counter("andes_requests", "Requests for answers by how they ended", ["outcome"], registry=own)
        for outcome in ("answered", "refused", "failed", "cancelled"):  # 0 is a figure too
            self._requests.labels(outcome)
        self._tokens = Counter("andes_tokens", "Tokens by kind", ["kind"], registry=own)
        self._first = Histogram("andes_first_token_seconds", "Request to first token", registry=own, buckets=SECONDS)
        self._each = Histogram("andes_token_seconds", "Between two tokens of an answer", registry=own, buckets=SECONDS)
        self._queue = Gauge("andes_queue", "Requests that wait", registry=own)
        self._running = Gauge("andes_answers", "Answers in the making", registry=own)
        self._promised = Gauge("andes_memory_bytes", "Bytes by use", ["use"], registry=own)
        self._hits = Counter("andes_cache", "Look-ups of prefixes and pictures", ["cache", "result"], registry=own)

    def standing(self, waiting: int, running: int, memory: Memory) -> None:
        """How things stand now; asked for with every step, so that what did not change costs nothing."""
        now = (waiting, running, memory.taken, memory.kept)
        if now == self._now:
            return
        self._now = now
        self._queue.set(waiting)
        self._running.set(running)
        self._promised.labels("answers").set(memory.taken)
        self._promised.labels("prefixes").set(memory.kept)

    def answered(self, usage: Usage) -> None:
        """The engine has all answers of a request."""
        for kind in ("prompt", "cached", "image", "answer", "reasoning", "accepted"):
            self._tokens.labels(kind).inc(getattr(usage, kind))
        self._first.observe(usage.first)
        if usage.answer > 1:
            self._each.observe(usage.decode / (usage.answer - 1))

    def ended(self, outcome: str) -> None:
        """A request for an answer has ended: answered, failed, cancelled or refused; each is counted once."""
        self._requests.labels(outcome).inc()

    def looked_up(self, cache: str, *, hit: bool) -> None:
        """A prefix or a picture was looked for."""
        self._hits.labels(cache, "hit" if hit else "miss").inc()

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
