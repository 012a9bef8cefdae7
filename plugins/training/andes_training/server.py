"""Requests to servers with OpenAI's protocol: few attempts, then a clear error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import BackendUnavailable, TrainingError
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    import httpx

ATTEMPTS, PAUSE_SECONDS = 4, 1.0
"""Tries of one request, and the wait before the second one; each further wait is twice as long."""
MOST_BYTES = 64 * 2**20
"""Of a reply. More is read of none."""
AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Status codes after which another attempt may succeed."""


def library() -> Any:
    """httpx.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        fix = 'pip install "andes-training[server]"'
        raise BackendUnavailable("asking a server needs httpx", why=str(error), fix=fix) from None
    return httpx


def post(client: httpx.Client, url: str, body: Mapping[str, Any], *, slow: str = "look at the server") -> Any:
    """POST JSON -> JSON. Asks again when the connection or the server breaks, not when it refuses or is too slow.

    Args:
        client: its timeout is that of each attempt, from the request to the last byte.
        slow: what to do about a server that takes too long.

    Raises:
        TrainingError: a refusal, no answer in time, one that is too long or no JSON, or `ATTEMPTS` failures.
    """
    httpx, why, limit = library(), "", client.timeout.read
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            with client.stream("POST", url, json=body) as reply:
                text = read_reply(reply, url, limit)
            if reply.is_success:
                return parse_json(text)
        except (httpx.TimeoutException, TimeoutError):
            raise TrainingError(f"the server gave no answer in {limit:g} s", who=url, fix=slow) from None
        except (httpx.TransportError, httpx.DecodingError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            continue
        why = f"HTTP {reply.status_code}: {text[:500].decode(errors='replace')}"
        if reply.status_code not in AGAIN:
            raise TrainingError("the server refuses", who=url, why=why, fix="correct address, key or model")
    fix = "start it, or look at its log; then go on"
    raise TrainingError(f"the server failed {ATTEMPTS} times", who=url, why=why, fix=fix)


def read_reply(reply: httpx.Response, url: str, limit: float | None) -> bytes:
    """The body of a reply that is streamed.

    Raises:
        TrainingError: it is longer than `MOST_BYTES`. TimeoutError: it is not whole after `limit` seconds.
    """
    end, text = time.monotonic() + (float("inf") if limit is None else limit), bytearray()
    for chunk in reply.iter_bytes():
        text += chunk
        if len(text) > MOST_BYTES:
            fix = "look at the server: no answer is so long"
            raise TrainingError("the server's reply does not end", who=url, why=f"over {MOST_BYTES} bytes", fix=fix)
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(text)
