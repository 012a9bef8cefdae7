"""Who may come in: keys, rates, and bodies of bounded size."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from attrs import define, field
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from andes_sdk.errors import ConfigError
from andes_serve.failures import Failure

PATIENCE = 60.0
"""Seconds until a body must be whole, and until a client must have read more of its answer."""

HELD = "andes.held"
LOG = logging.getLogger("andes_serve")

MOST_CALLERS = 10_000
"""Callers whose rate is remembered; the one that was not seen for longest is forgotten first."""


def keys_of(variable: str | None, file: Path | None) -> tuple[str, ...]:
    """Keys from the value of an environment variable (separated by commas) and from a file (one a line).

    Raises:
        ConfigError: the file cannot be read, or holds no key, or one that no client can send.
    """
    found = [key.strip() for key in (variable or "").split(",")]
    if file is not None:
        try:
            own = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError("the keys cannot be read", who=str(file), why=str(error), fix="one key a line") from None
        own = [line for line in own if line and not line.startswith("#")]
        if not own:
            raise ConfigError("there is no key in it", who=str(file), fix="write one key a line")
        found += own
    if any(not (key.isascii() and key.isprintable()) or " " in key for key in found):
        why = "an HTTP header carries ASCII without spaces"
        raise ConfigError("a key cannot be sent", who=str(file or "the keys"), why=why, fix="use letters and digits")
    return tuple(dict.fromkeys(key for key in found if key))


@define(eq=False)
class Door:
    """Keys and rates.

    Attributes:
        keys: whoever has one may ask; empty: everybody. admin: who may change adapters; empty: nobody.
        rate: requests a minute for each caller; 0: any number.
    """

    keys: Sequence[str] = ()
    admin: Sequence[str] = ()
    rate: int = 0
    _left: OrderedDict[str, tuple[float, float]] = field(factory=OrderedDict)

    def enter(self, request: Request) -> None:
        """Let a request in.

        Raises:
            Failure: it has no key that is known, or comes too soon.
        """
        key = _bearer(request)
        if self.keys and not _known(key, (*self.keys, *self.admin)):
            what = "the API key is not known" if key else "no API key was given (Authorization: Bearer KEY)"
            raise Failure(401, what, kind="authentication_error", code="invalid_api_key")
        if self.rate:
            self._spend(hashlib.sha256(key.encode()).hexdigest() if self.keys else _address(request))

    def enter_as_admin(self, request: Request) -> None:
        """Let somebody in who may change the server.

        Raises:
            Failure: no admin key was set, or the request has another one.
        """
        if not self.admin:
            what = "this server was started without an admin key"
            raise Failure(403, what, kind="permission_error", code="admin_disabled")
        if not _known(_bearer(request), self.admin):
            raise Failure(401, "the admin key is not known", kind="authentication_error", code="invalid_api_key")

    def _spend(self, caller: str) -> None:
        now, most = time.monotonic(), float(self.rate)
        left, last = self._left.pop(caller, (most, now))
        left = min(most, left + (now - last) * most / 60)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > MOST_CALLERS:
            self._left.popitem(last=False)
        if left < 1:
            what = f"more than {self.rate} requests a minute"
            raise Failure(429, what, kind="rate_limit_error", code="rate_limit_exceeded", wait=(1 - left) * 60 / most)


def _bearer(request: Request) -> str:
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _known(key: str, keys: Sequence[str]) -> bool:
    """Whether it is one of them; each is compared, in a time that does not tell how much was right."""
    hits = [hmac.compare_digest(key.encode(), one.encode()) for one in keys]
    return any(hits)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


@define(eq=False)
class Bodies:
    """Bytes of the bodies of requests: what has come counts until the request has ended, since it stays that long.

    Attributes:
        limit: bytes of all together. taken: bytes in use. Used on the event loop alone.
    """

    limit: int
    taken: int = 0

    def held_by(self, app: ASGIApp) -> ASGIApp:
        """The same application, whose requests give their bytes back, and end where nobody reads their answers."""

        async def held(scope: Scope, receive: Receive, send: Send) -> None:
            async def patient(message: Message) -> None:
                try:
                    async with asyncio.timeout(PATIENCE):
                        await send(message)
                except TimeoutError:
                    raise _Unread from None

            own = scope[HELD] = _Held(self)
            try:
                await app(scope, receive, patient)
            except _Unread:
                LOG.warning("a client read nothing of its answer for %g s: it is given up", PATIENCE)
            finally:
                self.taken -= own.count

        return held


@define(eq=False)
class _Held:
    """Bytes that one request holds."""

    bodies: Bodies
    count: int = 0

    def take(self, count: int) -> None:
        bodies = self.bodies
        if bodies.taken + count > bodies.limit:
            what = f"the bodies of all requests together may have {bodies.limit} bytes, and there are {bodies.taken}"
            raise Failure(429, what, kind="rate_limit_error", code="memory_full", wait=2)
        bodies.taken += count
        self.count += count


class _Unread(Exception):
    """Nobody reads."""


async def body_of(request: Request, limit: int) -> bytearray:
    """The body, never more of it than the limit.

    Raises:
        Failure: it is larger, there is no room for it, it takes longer than `PATIENCE`, or the client left.
    """
    held: _Held = request.scope[HELD]
    limit = min(limit, held.bodies.limit)
    what = f"the body is larger than {limit} bytes"
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise Failure(413, what, code="request_too_large")
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                if len(data) + len(chunk) > limit:
                    raise Failure(413, what, code="request_too_large")
                held.take(len(chunk))
                data += chunk
    except TimeoutError:
        raise Failure(408, f"the body was not whole after {PATIENCE:g} s", code="timeout") from None
    except ClientDisconnect:
        raise Failure(499, "the client left before its request was whole", code="client_closed") from None
    return data
