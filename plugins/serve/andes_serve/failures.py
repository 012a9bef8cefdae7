"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` and an HTTP status."""

from __future__ import annotations

import logging
from typing import Any

from andes_sdk.errors import AndesError, ConfigError, InputError, NotFinite, SessionError

LOG = logging.getLogger("andes_serve")


class Failure(Exception):
    """A request that ends without an answer.

    Attributes:
        status: of HTTP. kind: OpenAI's type of error. param: the parameter to blame. code: a word for programs.
        wait: seconds after which the same request may succeed; None: it will not.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = "", param: str | None = None, code: str | None = None,
        wait: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        default = "server_error" if status >= 500 else "invalid_request_error"
        self.status, self.message, self.kind = status, message, kind or default
        self.param, self.code, self.wait = param, code, wait

    @property
    def outcome(self) -> str:
        """As `andes_requests` counts it."""
        return "cancelled" if self.status == 499 else "refused" if self.status < 500 else "failed"

    def body(self) -> dict[str, Any]:
        """As JSON says it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Beside the body."""
        found = {} if self.wait is None else {"Retry-After": str(max(1, round(self.wait)))}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def late(timeout: float) -> Failure:
    """A request that took longer than these seconds."""
    return Failure(504, f"the answer was not complete after {timeout:g} s", kind="timeout_error", code="timeout")


def failure_of(error: BaseException) -> Failure:
    """What a client is told of an error: all of what is its own fault, and no more than the kind of any other."""
    if isinstance(error, Failure):
        return error
    if isinstance(error.__cause__, Failure):  # raised inside a step of the engine, by a grammar
        return error.__cause__
    if isinstance(error, NotFinite):
        return Failure(500, str(error), code="not_finite")
    if isinstance(error, InputError | ConfigError | SessionError):
        who = (error.who or None) if isinstance(error, AndesError) else None
        return Failure(400, str(error), param=who, code="invalid_value")
    return Failure(500, f"the server failed: {type(error).__name__}", code="internal_error")


def noted(error: BaseException) -> Failure:
    """The same; what nobody had foreseen goes to the log, with where it happened."""
    failure = failure_of(error)
    if failure is not error and failure.code == "internal_error":
        LOG.error("a request failed", exc_info=error)
    return failure
