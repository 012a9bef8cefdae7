"""Thousands of requests for `serve.py`, a third of them malformed, oversized, cancelled or slow to read."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions


def told(what: str) -> None:
    """Progress, on stderr."""
    print(f"\r{what}   ", end="", file=sys.stderr, flush=True)


def shown(seed: int, side: int) -> dict[str, Any]:
    """A picture that nobody has seen, as a part of a message."""
    noise = random.Random(seed)
    image = Image.new("RGB", (side, side), tuple(noise.randrange(256) for _ in range(3)))
    for _ in range(20):
        x, y = noise.randrange(side - 40), noise.randrange(side - 40)
        image.paste(tuple(noise.randrange(256) for _ in range(3)), (x, y, x + 40, y + 40))
    data = io.BytesIO()
    image.save(data, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"},
    }


MALFORMED: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "model"}', 400),
    (b'{"model": "other", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "model", "messages": [{"role": "user", "content": 7}]}', 400),
    (b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "best_of": 3}', 400),
    (b'{"model": "model", "messages": [{"role": "user", "content": "x"}], "n": -1}', 400),
    (b'{"model": "model", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
    (b"\xff\xfe" * 40, 400),
)


def resident(process: subprocess.Popen[str]) -> int:
    """Bytes that a process holds in memory."""
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def mixed(
    client: httpx.AsyncClient,
    process: subprocess.Popen[str],
    pipe: Pipeline,
    count: int,
    told_so_far: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Requests of which a third are malformed, oversized, cancelled or slow to read; each answer is compared.

    What was found so far is told after every 500, `ended` of `requests`.
    """
    texts = [f"{'please tell me ' * (n % 7)}what is the shape number {n}?" for n in range(40)]
    pictures = {n: shown(n, 84) for n in range(5)}
    alone: dict[int, str] = {}

    def body_of(n: int) -> dict[str, Any]:
        content: Any = texts[n]
        if n % 8 in pictures and n % 8 < 5:
            content = [pictures[n % 8], {"type": "text", "text": texts[n]}]
        own = {"temperature": 1.0 if n % 2 else 0.0, "seed": n, "max_tokens": 4 + n % 9}
        return {"model": "model", "messages": [{"role": "user", "content": content}], **own}

    for n in range(40):
        body = body_of(n)
        content = body["messages"][0]["content"]
        images = []
        if not isinstance(content, str):
            images = [Image.open(io.BytesIO(base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])))]
        options = GenerationOptions(max_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"])
        alone[n] = pipe.generate([user_message(texts[n], images)], options).text
    found = {"requests": count, "wrong": 0, "unhandled": 0, "answered": 0, "refused": 0, "left": 0, "ended": 0}
    held: list[float] = []

    async def one(number: int) -> None:
        dice = random.Random(number)
        n, kind = dice.randrange(40), dice.choice(["good"] * 8 + ["malformed", "oversized", "cancelled", "slow"])
        path = "/v1/chat/completions"
        if kind == "malformed":
            content, status = dice.choice(MALFORMED)
            got = await client.post(path, content=content)
            found["refused"] += 1
            found["unhandled"] += got.status_code != status or "error" not in got.json()
        elif kind == "oversized":
            big = {"model": "model", "messages": [{"role": "user", "content": "x" * (2 << 20)}]}
            try:
                status = (await client.post(path, json=big)).status_code
            except httpx.TransportError:  # the server closed before everything was sent
                status = 413
            found["refused"] += 1
            found["unhandled"] += status != 413
        elif kind in ("cancelled", "slow"):
            text, ended = "", False
            async with client.stream("POST", path, json={**body_of(n), "stream": True}) as got:
                async for line in got.aiter_lines():
                    if line.startswith("data: {"):
                        text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
                    ended = ended or line == "data: [DONE]"
                    if kind == "cancelled":
                        break
                    await asyncio.sleep(0.02)
            found["left"] += kind == "cancelled"
            found["wrong"] += kind == "slow" and not (ended and text == alone[n])
            found["wrong"] += kind == "cancelled" and not alone[n].startswith(text)
        else:
            got = await client.post(path, json=body_of(n))
            found["answered"] += 1
            if got.status_code != 200:
                found["unhandled"] += 1
            else:
                found["wrong"] += got.json()["choices"][0]["message"]["content"] != alone[n]

    waiting = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            await one(number)
            found["ended"] += 1
            if found["ended"] % 100 == 0:
                told(f"request {found['ended']} of {count}")
                held.append(resident(process))
            if found["ended"] % 500 == 0:
                told_so_far({**found, **memory()})

    def memory() -> dict[str, Any]:
        """MiB after each hundred requests, and how much more there are at the end than at the half."""
        growth = held[-1] / held[len(held) // 2 - 1] - 1 if len(held) > 1 else None
        return {"rss_growth": growth, "rss_mib": [round(one / 2**20) for one in held]}

    await asyncio.gather(*(worker() for _ in range(24)))
    figures = (await client.get("/metrics")).text
    failed = [line for line in figures.splitlines() if line.startswith('andes_requests_total{outcome="failed"}')]
    found["unhandled"] += int(float(failed[0].split()[-1])) if failed else 0
    return {**found, **memory()}
