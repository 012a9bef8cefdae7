"""The application: routes, who may use them, and errors in OpenAI's shape."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from andes_serve.asked import Strict, read
from andes_serve.chat import chat_completions
from andes_serve.door import body_of
from andes_serve.failures import Failure, noted
from andes_serve.page import page
from andes_serve.responses import Responses
from andes_serve.server import Server

Endpoint = Callable[[Server, Request], Awaitable[Response]]


class AdapterRequest(Strict):
    """`POST /v1/adapters`."""

    name: str
    folder: str


async def models(server: Server, request: Request) -> Response:
    """The base model and its adapters."""
    owned = {"object": "model", "created": server.started, "owned_by": "andes"}
    return JSONResponse({"object": "list", "data": [{"id": name, **owned} for name in server.models()]})


async def one_model(server: Server, request: Request) -> Response:
    """One of them."""
    name = request.path_params["name"]
    server.adapter_of(name)
    return JSONResponse({"id": name, "object": "model", "created": server.started, "owned_by": "andes"})


async def add_adapter(server: Server, request: Request) -> Response:
    """Attach an adapter from a folder of the server's machine."""
    asked = read(AdapterRequest, await body_of(request, 1 << 16))
    await server.add_adapter(asked.name, Path(asked.folder))
    return JSONResponse({"id": f"{server.name}:{asked.name}", "object": "model"}, status_code=201)


async def remove_adapter(server: Server, request: Request) -> Response:
    """Forget an adapter."""
    name = request.path_params["name"]
    await server.remove_adapter(name)
    return JSONResponse({"id": f"{server.name}:{name}", "object": "model", "deleted": True})


ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/chat/completions", chat_completions),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{name:path}", one_model),
)
ADMIN: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/v1/adapters", add_adapter),
    ("DELETE", "/v1/adapters/{name:path}", remove_adapter),
)


def create_app(server: Server, *, origins: Sequence[str] = ()) -> FastAPI:
    """The application of a server.

    Args:
        origins: of web pages elsewhere that may ask (CORS); none unless they are named.
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        server.scheduler.start()
        try:
            yield
        finally:
            server.scheduler.stop()

    # the pages that describe an API fetch scripts from elsewhere; the description itself stays
    app = FastAPI(title="andes serve", lifespan=running, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.server = server
    routes: tuple[tuple[str, str, Endpoint], ...] = (*ROUTES, ("POST", "/v1/responses", Responses()))
    app.add_middleware(server.bodies.held_by)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
    for enter, some in ((server.door.enter, routes), (server.door.enter_as_admin, ADMIN)):
        for method, path, endpoint in some:
            counted = some is routes and method == "POST"
            app.add_api_route(
                path, _guarded(server, endpoint, enter, counted=counted), methods=[method], response_model=None,
                summary=(endpoint.__doc__ or "").strip().partition("\n")[0],
            )  # fmt: skip
    app.add_api_route("/", _page, methods=["GET"], response_model=None, include_in_schema=False)
    app.add_api_route("/web/{name}", _page, methods=["GET"], response_model=None, include_in_schema=False)
    app.add_api_route("/health", _health(server), methods=["GET"], response_model=None)
    app.add_api_route("/metrics", _metrics(server), methods=["GET"], response_model=None)

    async def other(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException | StarletteError) else 500
        text = error.detail if isinstance(error, HTTPException | StarletteError) else "internal error"
        return told(Failure(status, f"{request.method} {request.url.path}: {text}"))

    app.add_exception_handler(StarletteError, other)
    return app


def _guarded(server: Server, endpoint: Endpoint, enter: Callable[[Request], None], *, counted: bool) -> Any:
    """A route; `counted`: it answers, and `andes_requests` counts its failures beside its answers."""

    async def route(request: Request) -> Response:
        try:
            enter(request)
            return await endpoint(server, request)
        except Exception as error:
            failure = noted(error)
            if counted:
                server.metrics.ended(failure.outcome)
            return told(failure)

    return route


async def _page(request: Request) -> Response:
    """The web page; whoever opens it needs no key, whoever asks does."""
    try:
        return page(request.path_params.get("name", "index.html"))
    except Failure as failure:
        return told(failure)


def told(failure: Failure) -> Response:
    """A failure as a response."""
    return JSONResponse(failure.body(), status_code=failure.status, headers=failure.headers())


def _health(server: Server) -> Any:
    async def health() -> Response:
        """Whether requests are taken."""
        good = server.scheduler.alive and not server.scheduler.draining
        return JSONResponse({"status": "ok" if good else "shutting down"}, status_code=200 if good else 503)

    return health


def _metrics(server: Server) -> Any:
    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        try:
            server.door.enter(request)
        except Failure as failure:
            return told(failure)
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    return metrics
