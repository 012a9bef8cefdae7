"""The server that judges and embeds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import httpx
from andes_training.server import post
from attrs import frozen

from andes_sdk.errors import TrainingError

TIMEOUT_SECONDS = 120.0


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
        headers = {"Authorization": f"Bearer {os.environ[self.key]}"} if os.environ.get(self.key) else {}
        with httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS) as client:
            return post(client, f"{self.address.rstrip('/')}/{path}", body)
