"""`andes serve`: a model behind OpenAI's protocol."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from andes_sdk.assembling.discovery import extensions
from andes_sdk.cli import loading
from andes_sdk.cli.console import clean, stderr
from andes_sdk.errors import ConfigError
from andes_sdk.hookspecs import MODELS

if TYPE_CHECKING:
    from andes_serve.door import Door
    from andes_serve.server import Server

T = TypeVar("T")
LEFT = 5
"""Seconds at the end for clients to read why their answers stop."""

MODEL = typer.Argument(help="Folder or file of a model, an installed one's name, or owner/name on the Hub.")


@clean
def serve(
    model: Annotated[str | None, MODEL] = None,
    config: loading.Config = None,
    plugin: loading.Plugins = None,
    option: loading.Options = None,
    device: loading.Device = None,
    dtype: loading.Dtype = None,
    backend: loading.Backend = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=FOLDER", help="A LoRA adapter; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model. (default: its folder's name)")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option(help="File with API keys, one a line; ANDES_API_KEY holds some too.")
    ] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Web origin that may ask (CORS); repeatable.")] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Fetch pictures from public http(s) addresses.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Where a request says none.")] = 0.0,
    concurrency: Annotated[int | None, typer.Option(help="Answers in the making at once. (default: 32)")] = None,
    queue: Annotated[int | None, typer.Option(help="Requests that may wait. (default: 256)")] = None,
    memory: Annotated[int | None, typer.Option(help="MiB for KV and picture rows. (default: a quarter)")] = None,
    prefixes: Annotated[int | None, typer.Option(help="MiB of it for kept prefixes. (default: half of it)")] = None,
    opening: Annotated[int | None, typer.Option(help="MiB for pictures that are opened. (default: a 16th)")] = None,
    body: Annotated[int | None, typer.Option(help="MiB of a request. (default: 32)")] = None,
    bodies: Annotated[int | None, typer.Option(help="MiB of all requests. (default: a 16th)")] = None,
    pictures: Annotated[int | None, typer.Option(help="In one request. (default: 16)")] = None,
    prompt: Annotated[int | None, typer.Option(help="Most rows of a prompt.")] = None,
    answer: Annotated[int | None, typer.Option(help="Most tokens of an answer. (default: 4096)")] = None,
    choices: Annotated[int | None, typer.Option(help="Largest n. (default: 8)")] = None,
    rate: Annotated[int | None, typer.Option(help="Requests a minute for each key or address; 0: any.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds until an answer is given up. (default: 600)")] = None,
    grace: Annotated[float | None, typer.Option(help="Seconds for running answers at shutdown. (default: 30)")] = None,
    chunk: Annotated[int | None, typer.Option(help="Rows of prompts read in one pass. (default: 256)")] = None,
) -> None:
    """Serve MODEL to any OpenAI client, and to a browser.

    Keys: ANDES_API_KEY or --keys; without either everybody may ask. ANDES_ADMIN_KEY allows /v1/adapters.
    """
    given = {
        "concurrency": concurrency, "queue": queue, "memory": _mib(memory), "prefixes": _mib(prefixes),
        "opening": _mib(opening), "body": _mib(body), "bodies": _mib(bodies), "pictures": pictures,
        "prompt": prompt, "answer": answer, "choices": choices, "rate": rate, "timeout": timeout,
        "grace": grace, "chunk": chunk,
    }  # fmt: skip
    limits = _limits({k: v for k, v in given.items() if v is not None})
    door = _door(keys, limits.rate)
    adapters = _adapters(adapter or ())
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"{temperature:g} is no temperature", who="--temperature", fix="give 0, or a number above it")
    for one in origin or ():
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+|\*", one):
            fix = "write it as it is sent: https://app.example or capacitor://localhost, without a path; * for all"
            raise ConfigError(f"{one!r} is no origin", who="--origin", fix=fix)
    source = _source(model, config)
    with bound(host, port) as at:  # before a large model is read for nothing

        def load() -> Server:
            pipeline = loading.open_pipeline(
                source, config, plugins=plugin, options=option, device=device, dtype=dtype, backend=backend
            )
            loading.ready(pipeline)
            for own, folder in adapters.items():
                pipeline.add_adapter(own, folder)
            from andes_serve.server import Server

            own_name = name or own_name_of(Path(source or str(config)))
            defaults = {"temperature": temperature}
            return Server(pipeline, own_name, limits, door, defaults, allow_remote, list(adapters))

        with uncollected():
            server = apart(load)
            from andes_serve.app import create_app

            app = create_app(server, origins=origin or ())
        run(app, server, at)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected within: what imports make stays, and looking through it again and again takes time."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def apart(work: Callable[[], T]) -> T:
    """The result of some work on a thread that ends with it.

    A thread that has computed keeps threads of OpenMP for itself. With more of them than cores OpenMP stops spinning
    between loops, and each step of a small model takes twice as long. So none but the engine's may be left.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="andes-load", daemon=True)  # Ctrl-C does not wait for it
    thread.start()
    found = done.result()
    thread.join()
    return found


def run(app: Any, server: Server, at: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; running answers get `grace` seconds then, or until the second signal."""
    import uvicorn

    name, limits = server.name, server.limits
    host, port = at.getsockname()[:2]
    if not server.door.keys and host not in ("127.0.0.1", "::1"):
        stderr().print("no API key is set: whoever reaches this address may ask", style="yellow", markup=False)

    class Told(uvicorn.Server):
        """Says where it listens, and stops taking requests before it waits for those that run."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
                stderr().print(f"serving {name} at {url}", markup=False, soft_wrap=True)

        def handle_exit(self, sig: int, frame: Any) -> None:
            if server.scheduler.draining:  # the second one: whoever waits is told, then the process ends
                server.scheduler.halt()
                return
            server.scheduler.drain()
            patience = threading.Timer(limits.grace, server.scheduler.halt)
            patience.daemon = True
            patience.start()
            super().handle_exit(sig, frame)

    # the thread that steps holds Python's lock for long; by default each of many small writes would wait 5 ms for it
    sys.setswitchinterval(0.0005)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=round(limits.grace) + LEFT, limit_concurrency=None, backlog=2048,
    )  # fmt: skip
    logging.getLogger("uvicorn.error").addFilter(_worth_telling)
    Told(config).run(sockets=[at])


def bound(host: str, port: int) -> socket.socket:
    """A socket of this address that nothing else listens at.

    Raises:
        ConfigError: the address is no address of this machine, or in use.
    """
    own = None
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        own = socket.socket(kind)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
        own.listen()  # two may bind, one may listen
    except OSError as error:
        if own is not None:
            own.close()
        fix = "stop what listens there, or give another --port (0 takes a free one) or --host"
        raise ConfigError("cannot listen", who=f"{host}:{port}", why=error.strerror or str(error), fix=fix) from None
    return own


def _worth_telling(record: logging.LogRecord) -> bool:
    """Whether uvicorn's message is more than that a client which does not read was left at the end."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _door(file: Path | None, rate: int) -> Door:
    from andes_serve.door import Door, keys_of

    own = keys_of(os.environ.get("ANDES_API_KEY"), file)
    return Door(own, keys_of(os.environ.get("ANDES_ADMIN_KEY"), None), rate)


def _source(model: str | None, config: Path | None) -> str | None:
    """The model that is served: as `open_pipeline` chooses it; None where a configuration file says what to build."""
    if model or config:
        return model
    if not (found := next(iter(extensions(MODELS)), None)):
        fix = "give MODEL (a folder, a file or owner/name), or --config FILE (a list of plugins), or install andes-nano"
        raise ConfigError("no model was given", who="andes serve", why="none is installed either", fix=fix)
    return found


def own_name_of(path: Path) -> str:
    """A model's name: that of its folder, which may have dots, or of its file without the suffix."""
    return path.stem if path.is_file() else path.name


def _mib(count: int | None) -> int | None:
    return None if count is None else count << 20


def _limits(given: dict[str, Any]) -> Any:
    from andes_serve.limits import Limits

    try:
        return Limits(**given)
    except ValueError as error:
        raise ConfigError("a limit does not fit", who="andes serve", why=str(error), fix="see --help") from None


def _adapters(texts: Sequence[str]) -> dict[str, str]:
    from andes_serve.limits import NAME, NAMES

    found: dict[str, str] = {}
    for text in texts:
        name, _, folder = text.partition("=")
        why = "" if NAME.fullmatch(name) else NAMES
        if why or not folder:
            raise ConfigError(f"cannot read {text!r}", who="--adapter", why=why, fix="write NAME=FOLDER")
        if name in found:
            raise ConfigError(f"{name!r} is given twice", who="--adapter", fix="give each adapter a name of its own")
        found[name] = folder
    return found
