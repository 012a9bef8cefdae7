"""A judge behind any server with OpenAI's protocol."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import min_len

from andes_sdk.errors import BackendUnavailable, InputError
from andes_sdk.reading import parse_json

if TYPE_CHECKING:
    import httpx

ATTEMPTS, PAUSE_SECONDS, TIMEOUT_SECONDS = 4, 1.0, 120.0
MOST_BYTES = 1 << 20
"""Of a reply: a grade is short."""
AGAIN = frozenset({408, 409, 429, 500, 502, 503, 504})


@frozen(kw_only=True)
class ServerJudge:
    """Asks a model behind a server, greedily.

    Attributes:
        address: up to and with `/v1`. model: its name there. key: environment variable with the key; it may be unset.
    """

    address: str = field(validator=min_len(1))
    model: str = field(validator=min_len(1))
    key: str = "OPENAI_API_KEY"

    def ask(self, prompt: str) -> str:
        """One prompt -> the reply's text.

        Raises:
            InputError: a refusal, a reply without text, or `ATTEMPTS` failures. BackendUnavailable: no httpx.
        """
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
        reply = self._post(f"{self.address.rstrip('/')}/chat/completions", body)
        try:
            text = reply["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputError("the judge's reply has no text", who=self.address, why=f"got {reply!r:.200}")
        return text

    def _post(self, url: str, body: Any) -> Any:
        library = _httpx()
        headers = {"Authorization": f"Bearer {os.environ[self.key]}"} if os.environ.get(self.key) else {}
        why = ""
        with library.Client(headers=headers, timeout=TIMEOUT_SECONDS) as client:
            for attempt in range(ATTEMPTS):
                time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0.0)
                try:
                    status, text = self._once(client, url, body)
                    if status < 300:
                        return parse_json(text)
                    why = f"HTTP {status}: {text[:300].decode(errors='replace')}"
                except (library.TransportError, library.DecodingError, ValueError) as error:
                    why = f"{type(error).__name__}: {error}"
                    continue
                if status not in AGAIN:
                    raise InputError("the judge refuses", who=url, why=why, fix="correct address, key or model")
        raise InputError(f"the judge failed {ATTEMPTS} times", who=url, why=why, fix="start it, then go on")

    def _once(self, client: httpx.Client, url: str, body: Any) -> tuple[int, bytes]:
        content = bytearray()
        with client.stream("POST", url, json=body) as reply:
            for chunk in reply.iter_bytes():
                content += chunk
                if len(content) > MOST_BYTES:
                    raise InputError("the judge's reply does not end", who=url, why=f"over {MOST_BYTES} bytes")
        return reply.status_code, bytes(content)


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        fix = 'pip install "andes-evaluation[judge]"'
        raise BackendUnavailable("asking a judge needs httpx", why=str(error), fix=fix) from None
    return httpx
