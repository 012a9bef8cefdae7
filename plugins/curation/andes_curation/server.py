"""Requests to an OpenAI-compatible server: few retries, then a clear error."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import httpx
from attrs import frozen

from andes_sdk.errors import TrainingError

ATTEMPTS, SECONDS = 4, 120.0
AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Status codes after which another attempt may succeed."""


@frozen
class Server:
    """Where models answer.

    Attributes:
        address: up to and with `/v1`. key: environment variable with the key; it may be unset.
    """

    address: str
    key: str

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """POST JSON -> JSON.

        Raises:
            TrainingError: no address, a server that stays away, or an answer that is an error.
        """
        if not self.address:
            raise TrainingError(
                "no server", who="curation", fix='set its address: {curation = {server = "http://…/v1"}}'
            )
        url = f"{self.address.rstrip('/')}/{path}"
        headers = {"Authorization": f"Bearer {os.environ[self.key]}"} if os.environ.get(self.key) else {}
        why = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(min(8.0, 0.5 * 2**attempt))
            try:
                reply = httpx.post(url, json=body, headers=headers, timeout=SECONDS)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if reply.is_success:
                try:
                    return reply.json()
                except ValueError as error:
                    raise TrainingError("the server answers no JSON", who=url, why=str(error)) from None
            why = f"{reply.status_code}: {reply.text[:200]}"
            if reply.status_code not in AGAIN:
                break
        raise TrainingError("the server does not answer", who=url, why=why, fix="start it, or correct address and key")
