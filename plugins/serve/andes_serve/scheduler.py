"""One thread that steps the engine: requests join, wait for memory, stream, end, or are cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from andes_sdk.runtime.engine import Engine
from andes_serve.failures import Failure, late, noted
from andes_serve.jobs import Choice, Done, Event, Failed, Job
from andes_serve.memory import Memory
from andes_serve.sharing import Shared

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_serve.limits import Limits
    from andes_serve.metrics import Metrics

T = TypeVar("T")
LOG = logging.getLogger("andes_serve")


class Scheduler:
    """Runs requests on a pipeline's engine, on a thread of its own.

    A request joins in the order of arrival, once there is a place and memory for the longest answer that it may get.
    Prompts take turns: each pass reads at most `limits.chunk` rows of them beside one step of every running answer.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits, metrics: Metrics) -> None:
        self.pipeline, self.limits, self.metrics = pipeline, limits, metrics
        ends = frozenset((pipeline.tokenizer.eos, pipeline.tokenizer.pad))
        positions = pipeline.model.text.max_positions
        self.memory = Memory.measured(pipeline, limits.memory)
        self.shared = Shared(pipeline, limits, self.memory, metrics)
        self.engine = Engine(self.shared, pipeline.policy, pipeline.decoder, ends, positions, chunk_rows=limits.chunk)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._draining = self._stopping = False
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="andes-serve", daemon=True)

    # ------------------------------------------------------------ from any thread

    def start(self) -> None:
        """Begin to step."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, cancel those that are left, and end the thread."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def halt(self) -> None:
        """Refuse new requests, and end those that run with an error, as soon as the step is done."""
        with self._wake:
            self._draining = self._stopping = True
            self._wake.notify()

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    @property
    def alive(self) -> bool:
        """Whether the thread steps."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Let a request wait for its turn.

        Raises:
            Failure: it can never fit, the queue is full, or the server shuts down.
        """
        self._check(job)
        with self._wake:
            if self._draining:
                raise Failure(503, "the server is shutting down", code="shutting_down", wait=5)
            if len(self._waiting) >= self.limits.queue + self._free():
                what = f"{len(self._waiting)} requests wait already, the limit is {self.limits.queue}"
                raise Failure(429, what, kind="rate_limit_error", code="queue_full", wait=2)
            self._waiting.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Give a request up; it is told nothing more."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Run something between two steps, on the engine's thread."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)

        with self._wake:
            if self._stopping:
                done.set_exception(Failure(503, "the server is shutting down", code="shutting_down"))
                return done
            self._calls.append(run)
            self._wake.notify()
        return done

    def _free(self) -> int:
        return max(0, self.limits.concurrency - self._places())

    def _places(self) -> int:
        return sum(len(job.options) for job in self._running)

    def _check(self, job: Job) -> None:
        """Refuse what can never fit, with the numbers; note what it may need."""
        rows, longest = len(job.inputs.ids), max(o.max_tokens for o in job.options)
        if rows > self.limits.prompt:
            what = f"the prompt has {rows} tokens, this server takes {self.limits.prompt}"
            raise Failure(400, what, param="messages", code="context_length_exceeded")
        if rows + longest > self.engine.positions:
            what = f"the prompt has {rows} tokens and the answer may have {longest}: {rows + longest} of the model's "
            raise Failure(400, f"{what}{self.engine.positions}", param="messages", code="context_length_exceeded")
        if len(job.options) > self.limits.concurrency:
            what = f"n is {len(job.options)}, this server runs {self.limits.concurrency} answers at once"
            raise Failure(400, what, param="n", code="too_many_choices")
        job.memory = self.memory.needed(job.inputs, [o.max_tokens for o in job.options])
        if job.memory > self.limits.memory:
            what = f"the request may need {job.memory} bytes ({rows} rows, {len(job.options)} x {longest} tokens), "
            what += f"this server has {self.limits.memory}: shorten the prompt, or lower max_tokens or n"
            raise Failure(400, what, param="max_tokens", code="memory_exceeded")

    # ------------------------------------------------------------ on its own thread

    def _run(self) -> None:
        torch.get_num_threads()  # reads the default, which the next line sets for this thread alone
        torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                while not (self._calls or self._waiting or self._running or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    break
            try:
                self._turn()
            except Exception as error:  # not one of a conversation: the engine keeps those
                LOG.exception("a turn of the engine failed")
                for job in [*self._running]:
                    self._fail(job, error)
        ended = Failure(503, "the server is shutting down", code="shutting_down")
        for job in [*self._running]:
            self._fail(job, ended)
        while self._waiting:
            self._tell(self._waiting.popleft(), [Failed(ended)])
        while self._calls:
            self._calls.popleft()()
        self.engine.close()

    def _turn(self) -> None:
        while self._calls:
            self._calls.popleft()()
        self._clear()
        self._admit()
        if self.engine.active:
            self._step()
        self.metrics.standing(len(self._waiting), self._places(), self.memory)

    def _step(self) -> None:
        self.metrics.standing(len(self._waiting), self._places(), self.memory)
        before = {c: len(c.conversation.tokens) for j in self._running for c in j.choices if c.conversation}
        readers = [c for c in self.engine.active if c.reading]
        self.engine.step()
        if len(readers) > 1 and readers[0].reading:  # prompts take turns
            self.engine.active.remove(readers[0])
            self.engine.active.append(readers[0])
        for job in [*self._running]:
            self._after_step(job, before)

    def _clear(self) -> None:
        """Cancelled and late requests leave."""
        now = time.perf_counter()
        with self._wake:  # others append meanwhile
            gone = [j for j in self._waiting if j.cancelled or now - j.start > j.timeout]
            for job in gone:
                self._waiting.remove(job)
        for job in gone:
            self._tell(job, [Failed(late(job.timeout))])
        for job in [*self._running]:
            if job.cancelled:
                self._end(job)
            elif now - job.start > job.timeout:
                self._fail(job, late(job.timeout))

    def _admit(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            if len(job.options) > self._free():
                return
            if not self.memory.take(job.memory):  # kept prefixes make room
                self.shared.shrink(self.limits.memory - self.memory.taken - job.memory)
                if not self.memory.take(job.memory):
                    return
            with self._wake:
                self._waiting.popleft()
            self._running.append(job)
            choices = job.open(self.pipeline.tokenizer)
            try:
                watches = [c.watch(self.engine) for c in choices]
                for choice, one in zip(
                    choices, self.engine.join_many(job.inputs, list(job.options), watches), strict=True
                ):
                    choice.conversation = one
            except Exception as error:
                self._fail(job, error)

    def _after_step(self, job: Job, before: dict[Choice, int]) -> None:
        events: list[Event] = []
        for choice in job.choices:
            one = choice.conversation
            if one is None or choice.closed:
                continue
            if one.error is not None:
                self._fail(job, one.error)
                return
            choice.accepted += max(0, len(one.tokens) - before.get(choice, 0) - 1)
            event = choice.event(final=bool(one.finish))
            if event is not None:
                events.append(event)
            if one.finish:
                self._close(job, choice)
        if all(choice.closed for choice in job.choices):
            usage = job.usage()
            self.metrics.answered(usage)
            events.append(Done(usage))
            self._end(job)
        if events:
            self._tell(job, events)

    def _close(self, job: Job, choice: Choice) -> None:
        one: Any = choice.conversation
        choice.closed = True
        job.cached = max(job.cached, one.session.cached)
        stats = one.session.stats
        job.kv_bytes += stats.kv_bytes
        job.kv_rows += sum(sum(layer) for layer in stats.rows)
        job.kv_read += self.memory.heads * one.session.length
        self.shared.keep(one.session, one.tokens)

    def _fail(self, job: Job, error: BaseException) -> None:
        error = noted(error)
        self._end(job)
        self._tell(job, [Failed(error)])

    def _end(self, job: Job) -> None:
        """Free what a request holds."""
        for choice in job.choices:
            if choice.conversation is not None and not choice.closed:
                self.engine.leave(choice.conversation)
                choice.closed = True
        self._running.remove(job)
        self.memory.give(job.memory)

    def _tell(self, job: Job, events: list[Event]) -> None:
        if job.cancelled:
            return
        try:
            job.deliver(events)
        except Exception:  # whoever asked is gone
            LOG.debug("nobody takes the answer", exc_info=True)
            job.cancelled = True
