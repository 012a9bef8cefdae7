"""litellm and langchain-openai against our server: plain, streamed, held to a schema, with a tool, with a picture.

    nox -s serve_clients
    python benchmarks/serve_clients.py --server .venv/bin/python     # in an environment that has both

The server runs in an environment of its own, from which this one needs nothing. What a client reads is compared with
the answer that the server gives over plain HTTP.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import json
import os
import struct
import subprocess
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHIPPED = "andes-nano"
QUESTION = "what is the color of the shape?"
SCHEMA = {
    "title": "turn", "type": "object", "properties": {"side": {"enum": ["left", "right"]}}, "required": ["side"],
    "additionalProperties": False,
}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "turn", "description": "Turn.", "parameters": SCHEMA}}


@contextmanager
def serving(python: Path) -> Iterator[str]:
    """A server of the shipped model -> its address."""
    command = [str(python), "-m", "andes_sdk", "serve", SHIPPED, "--name", "model", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stderr is not None
            line = ""
            while not line.startswith("serving "):
                line = process.stderr.readline()
                if not line:
                    raise SystemExit("the server did not start")
            yield line.partition(" at ")[2].strip()
        finally:
            process.terminate()


def picture() -> str:
    """A red square of 84 pixels, as a data URL of PNG; written here, so that no library is needed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xd0\x20\x20" * 84) * 84
    head = struct.pack(">IIBBBBB", 84, 84, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


PLAIN: list[Any] = [{"role": "user", "content": QUESTION}]
SEEN: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": QUESTION}],
    }
]


def direct(url: str, messages: list[Any]) -> str:
    """The answer over plain HTTP."""
    body = json.dumps({"model": "model", "messages": messages, "max_tokens": 12}).encode()
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as got:
        return str(json.load(got)["choices"][0]["message"]["content"])


def litellm_checks(url: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Name and check of each thing that litellm does."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    import litellm

    given: dict[str, Any] = {"model": "openai/model", "api_base": f"{url}/v1", "api_key": "any", "max_tokens": 12}

    def text(messages: list[Any]) -> bool:
        return bool(litellm.completion(messages=messages, **given).choices[0].message.content == direct(url, messages))

    def streamed() -> bool:
        parts = litellm.completion(messages=PLAIN, stream=True, **given)
        return "".join(part.choices[0].delta.content or "" for part in parts) == direct(url, PLAIN)

    def schema() -> bool:
        form = {"type": "json_schema", "json_schema": {"name": "turn", "schema": SCHEMA, "strict": True}}
        got = litellm.completion(messages=PLAIN, response_format=form, **{**given, "max_tokens": 60})
        return json.loads(got.choices[0].message.content)["side"] in ("left", "right")

    def tool() -> bool:
        got = litellm.completion(messages=PLAIN, tools=[TOOL], tool_choice="required", **{**given, "max_tokens": 400})
        call = got.choices[0].message.tool_calls[0].function
        return call.name == "turn" and json.loads(call.arguments)["side"] in ("left", "right")

    def refused() -> bool:
        try:
            litellm.completion(messages=PLAIN, **{**given, "model": "openai/none"})
        except litellm.NotFoundError:
            return True
        return False

    yield "a text", lambda: text(PLAIN)
    yield "a picture", lambda: text(SEEN)
    yield "a stream", streamed
    yield "a schema", schema
    yield "a tool", tool
    yield "an unknown model is NotFoundError", refused


def langchain_checks(url: str) -> Iterator[tuple[str, Callable[[], bool]]]:
    """Name and check of each thing that langchain-openai does."""
    from langchain_openai import ChatOpenAI
    from openai import NotFoundError

    def chat(**more: Any) -> Any:
        given = {"model": "model", "base_url": f"{url}/v1", "api_key": "any", "max_tokens": 12, **more}
        return ChatOpenAI(**given)

    def streamed() -> bool:
        parts = list(chat(stream_usage=True).stream(PLAIN))
        usage = sum(part.usage_metadata["output_tokens"] for part in parts if part.usage_metadata)
        return "".join(part.content for part in parts) == direct(url, PLAIN) and 0 < usage <= 12

    def schema() -> bool:
        got = chat(max_tokens=60).with_structured_output(SCHEMA, method="json_schema", strict=True).invoke(PLAIN)
        return got["side"] in ("left", "right")

    def tool() -> bool:
        got = chat(max_tokens=400).bind_tools([TOOL], tool_choice="required").invoke(PLAIN)
        return got.tool_calls[0]["name"] == "turn" and got.tool_calls[0]["args"]["side"] in ("left", "right")

    def responses() -> bool:
        return bool(chat(use_responses_api=True, max_tokens=16).invoke(PLAIN).text)

    def refused() -> bool:
        try:
            chat(model="none").invoke(PLAIN)
        except NotFoundError:
            return True
        return False

    yield "a text", lambda: chat().invoke(PLAIN).content == direct(url, PLAIN)
    yield "a picture", lambda: chat().invoke(SEEN).content == direct(url, SEEN)
    yield "a stream, with usage", streamed
    yield "a schema", schema
    yield "a tool", tool
    yield "the Responses API", responses
    yield "an unknown model is NotFoundError", refused


def main() -> None:
    """Check, and print a table; the exit status says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", type=Path, required=True, help="the Python that runs the server")
    given, failed = parser.parse_args(), 0
    with serving(given.server.absolute()) as url:
        for name, checks in (("litellm", litellm_checks), ("langchain-openai", langchain_checks)):
            print(f"{name} {importlib.metadata.version(name)}")
            for what, check in checks(url):
                try:
                    told = "good" if check() else "wrong"
                except Exception as error:
                    told = f"{type(error).__name__}: {str(error)[:300]}"
                failed += told != "good"
                print(f"  {what}: {told}", flush=True)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
