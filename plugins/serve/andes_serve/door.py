"""Who may come in: keys, rates, and bodies of bounded size."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from attrs import define, field
from starlette.requests import ClientDisconnect, Request

from andes_sdk.errors import ConfigError
from andes_serve.failures import Failure

PATIENCE = 60.0
"""Seconds until a body must be whole."""

MOST_CALLERS = 10_000
"""Callers whose rate is remembered; the one that was not seen for longest is forgotten first."""


def keys_of(variable: str | None, file: Path | None) -> tuple[str, ...]:
    """Keys from the value of an environment variable (separated by commas) and from a file (one a line).

    Raises:
        ConfigError: the file cannot be read, or holds no key.
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


async def body_of(request: Request, limit: int) -> bytes:
    """The body, never more of it than the limit.

    Raises:
        Failure: it is larger, takes longer than `PATIENCE`, or the client left.
    """
    what = f"the body is larger than {limit} bytes"
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit:
        raise Failure(413, what, code="request_too_large")
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise Failure(413, what, code="request_too_large")
    except TimeoutError:
        raise Failure(408, f"the body was not whole after {PATIENCE:g} s", code="timeout") from None
    except ClientDisconnect:
        raise Failure(499, "the client left before its request was whole", code="client_closed") from None
    return bytes(data)
