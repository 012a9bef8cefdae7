"""Requests to servers with OpenAI's protocol: few attempts, then a clear error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import BackendUnavailable, TrainingError

if TYPE_CHECKING:
    import httpx

ATTEMPTS, PAUSE_SECONDS = 4, 1.0
"""Tries of one request, and the wait before the second one; each further wait is twice as long."""
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
        client: its timeout is that of each attempt.
        slow: what to do about a server that takes too long.

    Raises:
        TrainingError: a refusal, no answer in time, an answer that is no JSON, or `ATTEMPTS` failures.
    """
    httpx, why = library(), ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
        try:
            reply = client.post(url, json=body)
            if reply.is_success:
                return reply.json()
        except httpx.TimeoutException:
            limit = client.timeout.read
            raise TrainingError(f"the server gave no answer in {limit:g} s", who=url, fix=slow) from None
        except (httpx.TransportError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            continue
        why = f"HTTP {reply.status_code}: {reply.text[:500]}"
        if reply.status_code not in AGAIN:
            raise TrainingError("the server refuses", who=url, why=why, fix="correct address, key or model")
    fix = "start it, or look at its log; then go on"
    raise TrainingError(f"the server failed {ATTEMPTS} times", who=url, why=why, fix=fix)
