"""What endpoints share: the pipeline behind its scheduler, the names of models, and requests as jobs."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch
from attrs import define, field
from starlette.requests import Request

from andes_sdk import __version__
from andes_sdk.errors import AndesError, ConfigError, InputError
from andes_sdk.runtime.options import GenerationOptions
from andes_serve.constraints import Grammars, guided
from andes_serve.door import Bodies, Door
from andes_serve.failures import Failure, failure_of, late
from andes_serve.jobs import Done, Event, Failed, Job
from andes_serve.limits import NAME, NAMES, Limits
from andes_serve.memory import Room
from andes_serve.messages import characters, coming, fetched, needed, opened
from andes_serve.metrics import Metrics
from andes_serve.scheduler import Scheduler

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

T = TypeVar("T")

READERS = 8
"""Threads that read requests without pictures, and compile grammars; and as many that fetch and decode pictures."""


@define(eq=False)
class Server:
    """A model that answers requests.

    Attributes:
        name: of the base model, as requests write it. defaults: of `GenerationOptions`, where a request is silent.
        remote: whether pictures are fetched from http(s) addresses.
        coming: room for pictures as they come. room: for those that are decoded. bodies: bytes of requests.
    """

    pipeline: Pipeline
    name: str
    limits: Limits = field(factory=Limits)
    door: Door = field(factory=Door)
    defaults: Mapping[str, Any] = field(factory=dict)
    remote: bool = False
    adapters: list[str] = field(factory=list)
    started: int = field(factory=lambda: int(time.time()))
    metrics: Metrics = field(factory=Metrics)
    scheduler: Scheduler = field(init=False)
    grammars: Grammars = field(init=False)
    coming: Room = field(init=False)
    room: Room = field(init=False)
    bodies: Bodies = field(init=False)
    fingerprint: str = field(init=False)
    _longest: int = 0
    _readers: ThreadPoolExecutor = field(init=False)
    _openers: ThreadPoolExecutor = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.scheduler = Scheduler(self.pipeline, self.limits, self.metrics)
        self.grammars = Grammars(self.pipeline)
        # one core each: see `apart`
        self._readers = ThreadPoolExecutor(READERS, "andes-reader", lambda: torch.set_num_threads(1))
        self._openers = ThreadPoolExecutor(READERS, "andes-opener", lambda: torch.set_num_threads(1))
        self.coming = Room(self.limits.opening, self.limits.queue)
        self.room = Room(self.limits.opening, self.limits.queue)
        self.bodies = Bodies(self.limits.bodies)
        artefact = self.pipeline.artefact
        made_of = artefact.digest if artefact else json.dumps(self.pipeline.plan.to_dict(), sort_keys=True, default=str)
        self.fingerprint = f"andes-{__version__}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"

    # ------------------------------------------------------------ models

    def models(self) -> list[str]:
        """The base, and each adapter as `base:adapter`."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter in self.adapters)]

    def adapter_of(self, model: str) -> str | None:
        """The adapter that a model's name asks for.

        Raises:
            Failure: there is no such model.
        """
        if model not in self.models():
            what = f"there is no model {model!r}; there are {', '.join(self.models())}"
            raise Failure(404, what, param="model", code="model_not_found")
        return model.removeprefix(self.name).removeprefix(":") or None

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Attach an adapter between two steps.

        Raises:
            Failure: it cannot be attached.
        """
        if not NAME.fullmatch(name):
            raise Failure(400, NAMES, param="name", code="invalid_value")
        await self._between(functools.partial(self.pipeline.add_adapter, name, folder))
        self.adapters.append(name)

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter between two steps.

        Raises:
            Failure: there is none of that name, or running answers use it.
        """
        if name not in self.adapters:
            raise Failure(404, f"there is no adapter {name!r}", param="name", code="adapter_not_found")

        def remove() -> None:
            self.scheduler.shared.forget(name)
            self.pipeline.remove_adapter(name)

        await self._between(remove)
        self.adapters.remove(name)

    async def _between(self, action: Any) -> None:
        try:
            await asyncio.wrap_future(self.scheduler.call(action))
        except AndesError as error:
            raise Failure(409 if "use it" in str(error) else 400, str(error), code="adapter_refused") from None

    # ------------------------------------------------------------ requests

    def options(self, given: Mapping[str, Any], count: int) -> list[GenerationOptions]:
        """Options of each of `count` answers: their seeds follow one another.

        Raises:
            Failure: a value that does not fit.
        """
        try:
            first = GenerationOptions(**given)
        except ConfigError as error:
            param = error.who.removeprefix("generation.")
            what = error.what if error.what.startswith(param) else f"{param}: {error.what}"
            raise Failure(400, what, param=param, code="invalid_value") from None
        own = [first.constraint.copy() if first.constraint else None for _ in range(count)]
        return [attrs.evolve(first, seed=(first.seed + n) & (1 << 64) - 1, constraint=own[n]) for n in range(count)]

    async def constraint(self, grammar: tuple[str, str] | None, bias: Any, prefix: str) -> Any:
        """What an answer is held to, made on another thread; None: nothing.

        Raises:
            Failure: a grammar or a bias that does not fit.
        """
        return await self._aside(lambda: guided(self.grammars, grammar, bias, prefix))

    async def _in_time(self, start: float, work: Awaitable[T]) -> T:
        """What comes of it, unless the request takes too long by then: it is cancelled."""
        try:
            async with asyncio.timeout(start + self.limits.timeout - time.perf_counter()) as limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise late(self.limits.timeout) from None
            raise

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    @asynccontextmanager
    async def prepared(
        self, messages: Sequence[dict[str, Any]], start: float, *, think: bool | None, size: int | None
    ) -> AsyncIterator[Any]:
        """`Inputs` of a conversation, made on another thread.

        Room is taken for pictures before they are fetched, and again before they are decoded. A request that may need
        all the room for fetching waits for all of it, and then fetches alone.

        Args:
            start: when the request came, by `time.perf_counter`.

        Raises:
            Failure: pictures that cannot be used, or that there is no room for; or it took too long.
        """
        text = characters(messages)
        if text > self.scheduler.engine.positions:
            await self._in_time(start, self._aside(lambda: self._check(text)))
        size_of_all = min(coming(messages, self.limits), self.limits.opening)
        threads = self._openers if size_of_all else self._readers
        await self._in_time(start, self.coming.take(size_of_all))
        fetching = threads.submit(fetched, messages, self.limits, remote=self.remote)
        try:
            some, pictures = await self._in_time(start, asyncio.wrap_future(fetching))
            count = needed(pictures, text)
            await self._in_time(start, self.room.take(count))
        finally:
            self.coming.give_after(fetching, size_of_all)
        making = threads.submit(lambda: self._made(some, think, size))
        try:
            yield await self._in_time(start, asyncio.wrap_future(making))
        finally:
            self.room.give_after(making, count)

    def _check(self, text: int) -> None:
        """Refuse a text that is too long whatever its tokens are: to count them takes much memory."""
        tokenizer, positions = self.pipeline.tokenizer, self.scheduler.engine.positions
        if not self._longest:  # characters of a token; rarely needed, so not at the start
            self._longest = max(len(tokenizer.decode([n])) for n in range(tokenizer.vocab_size))
        if text > positions * self._longest:
            what = f"the prompt has {text} characters, the model takes {positions} tokens of up to {self._longest}"
            raise Failure(400, what, param="messages", code="context_length_exceeded")

    def _made(self, messages: Sequence[dict[str, Any]], think: bool | None, size: int | None) -> Any:
        try:
            return self.pipeline.prepare(opened(messages, self.limits), think=think, image_size=size)
        except InputError as error:
            if not error.what.startswith("the prompt has"):
                raise
            what = f"{error.what}: send fewer or smaller pictures (image_size), or less text"
            raise Failure(400, what, param="messages", code="context_length_exceeded") from None

    def longest(self, asked: int | None, rows: int, param: str = "max_tokens") -> int:
        """Most tokens of an answer behind a prompt of so many rows.

        Raises:
            Failure: more are asked for than the server allows.
        """
        if asked is not None and asked > self.limits.answer:
            what = f"{param} is {asked}, this server's longest answer has {self.limits.answer}"
            raise Failure(400, what, param=param, code="invalid_value")
        if asked is not None:
            return asked
        room = self.scheduler.engine.positions - rows
        return max(1, min(self.limits.answer, room))

    def run(self, inputs: Any, options: Sequence[GenerationOptions], start: float) -> Running:
        """Hand a request to the engine; `start` is when it came, by `time.perf_counter`.

        Raises:
            Failure: it is refused.
        """
        running = Running(self.scheduler)
        running.job = Job(inputs, options, running.deliver, self.limits.timeout, start)
        self.scheduler.submit(running.job)
        return running


@define(eq=False)
class Running:
    """A request that the engine has, as the event loop sees it; leaving it early cancels it.

    What is told while the loop does something else wakes it once, and is read together.
    """

    scheduler: Scheduler
    job: Job = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop)
    _events: deque[Event] = field(factory=deque)
    _ready: asyncio.Event = field(factory=asyncio.Event)
    _woken: bool = False
    _ended: bool = False

    def deliver(self, events: Sequence[Event]) -> None:
        """Take what is new; on the engine's thread."""
        self._events.extend(events)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._ready.set)

    async def begun(self) -> None:
        """Wait for the first events.

        Raises:
            Failure: why there is none.
        """
        await self._ready.wait()
        first = self._events[0]
        if isinstance(first, Failed):
            self._ended = True
            raise failure_of(first.error)

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        """All events, some at a time.

        Raises:
            Failure: why it failed.
        """
        while not self._ended:
            await self._ready.wait()
            self._ready.clear()
            self._woken = False  # before what is there is read: what comes now wakes again
            found: list[Event] = []
            while self._events:
                found.append(self._events.popleft())
            if not found:
                continue
            last = found[-1]
            self._ended = isinstance(last, Done | Failed)
            if isinstance(last, Failed):
                if found[:-1]:
                    yield found[:-1]
                raise failure_of(last.error)
            yield found

    async def gathered(self) -> list[Event]:
        """All events together."""
        return [event async for some in self.events() for event in some]

    def leave(self) -> None:
        """Cancel it, unless it has ended."""
        if not self._ended:
            self._ended = True
            self.scheduler.cancel(self.job)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of it, unless the client leaves first: then it is cancelled.

    Raises:
        Failure: the client left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Failure(499, "the client left", code="client_closed")
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
