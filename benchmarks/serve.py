"""The server over loopback: many streams at once, its own cost, second turns, thousands of mixed requests, schemas.

    python benchmarks/serve.py --quick --json
    python benchmarks/serve.py --json --out docs/results/serve.json     # 10 000 requests, 500 schemas

A server of its own process runs the shipped model. Single streams, streams at once and decoding in this process take
turns; figures are medians. Answers are kept from ending by a bias on the tokens that end them.
`vs_llama_cpp` is null: the comparison at the shape of Qwen3-0.6B is not part of this script.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from andes_serve.constraints import Grammars, guided
from PIL import Image

from andes_sdk import Pipeline
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "examples/first_light/model"
QUESTION = "what is the color of the shape?"
STREAMS = 16


@asynccontextmanager
async def serving(model: Path, *more: str) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[str], float]]:
    """A server -> a client of it, its process, and the seconds until it answered."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "andes_sdk", "serve", str(model), "--name", "model", "--port", "0", *more],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        url = ""
        while not url:
            line = process.stderr.readline()
            if not line:
                raise SystemExit("the server did not start")
            url = line.partition(" at ")[2].strip() if line.startswith("serving ") else ""
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:
            yield client, process, time.perf_counter() - start
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def told(what: str) -> None:
    """Progress, on stderr."""
    print(f"\r{what}   ", end="", file=sys.stderr, flush=True)


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[float, float, int, str]:
    """Seconds to the first token and from there to the last, tokens, text."""
    start = time.perf_counter()
    first = last = 0.0
    usage, text = {}, ""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=asked) as got:
        assert got.status_code == 200, await got.aread()
        async for line in got.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            assert "error" not in chunk, line
            usage = chunk.get("usage") or usage
            if chunk["choices"]:
                last = time.perf_counter()
                first = first or last
                text += chunk["choices"][0]["delta"].get("content") or ""
    return first - start, last - first, usage["completion_tokens"], text


async def speeds(client: httpx.AsyncClient, pipe: Pipeline, tokens: int, rounds: int) -> dict[str, float]:
    """Many streams against one, and one against this process."""
    bias = {str(n): -100.0 for n in {pipe.tokenizer.eos, pipe.tokenizer.pad}}
    body = {
        "model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens, "logit_bias": bias,
    }  # fmt: skip
    held = guided(Grammars(pipe), None, bias, "")
    one, many, own = [], [], []
    told("warming up")
    await stream(client, {**body, "max_tokens": 4})
    pipe.generate(QUESTION, GenerationOptions(max_tokens=4))
    for number in range(rounds):
        told(f"speed, round {number + 1} of {rounds}")
        _, seconds, count, _ = await stream(client, body)
        one.append((count - 1) / seconds)
        start = time.perf_counter()
        bodies = [{**body, "temperature": 1.0, "seed": n} for n in range(STREAMS)]
        found = await asyncio.gather(*(stream(client, b) for b in bodies))
        many.append(sum(count for _, _, count, _ in found) / (time.perf_counter() - start))
        answer = pipe.generate(QUESTION, GenerationOptions(max_tokens=tokens, constraint=held))
        own.append(answer.tokens_per_second)
    single = statistics.median(one)
    return {
        "concurrency_gain": statistics.median(many) / single,
        "overhead": statistics.median(own) / single,
        "tokens_per_second": single,
        "tokens_per_second_of_16": statistics.median(many),
    }


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


async def second_turn(client: httpx.AsyncClient, rounds: int, side: int) -> float:
    """Time to the first token of a second question about a picture, to that of the first."""
    ratios = []
    for seed in range(rounds + 1):
        told(f"second turn, round {seed} of {rounds}")
        first = [{"role": "user", "content": [shown(seed, side), {"type": "text", "text": QUESTION}]}]
        body = {"model": "model", "max_tokens": 8}
        before, _, _, text = await stream(client, {**body, "messages": first})
        more = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "what is the shape?"}]
        after, _, _, _ = await stream(client, {**body, "messages": more})
        ratios.append(after / before)
    return statistics.median(ratios[1:])


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
    client: httpx.AsyncClient, process: subprocess.Popen[str], pipe: Pipeline, count: int, out: Path | None
) -> dict[str, Any]:
    """Requests of which a third are malformed, oversized, cancelled or slow to read; each answer is compared.

    What was found so far is written to `out` after every 500, `ended` of `requests`.
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
            if out and found["ended"] % 500 == 0:
                out.write_text(json.dumps({**found, **memory()}, indent=2) + "\n")

    def memory() -> dict[str, Any]:
        """MiB after each hundred requests, and how much more there are at the end than at the half."""
        growth = held[-1] / held[len(held) // 2 - 1] - 1 if len(held) > 1 else None
        return {"rss_growth": growth, "rss_mib": [round(one / 2**20) for one in held]}

    await asyncio.gather(*(worker() for _ in range(24)))
    figures = (await client.get("/metrics")).text
    failed = [line for line in figures.splitlines() if line.startswith('andes_requests_total{outcome="failed"}')]
    found["unhandled"] += int(float(failed[0].split()[-1])) if failed else 0
    return {**found, **memory()}


def schema_of(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    """A random schema whose values are bounded, so that an answer can end."""
    kinds = ["enum", "integer", "string", "boolean", "const", "number", "null"] + ["array", "object"] * (depth < 2)
    kind = "object" if depth == 0 else dice.choice(kinds)
    if kind == "enum":
        return {"enum": dice.sample(["red", "blue", 3, True, None, "a b"], 3)}
    if kind == "const":
        return {"const": dice.choice(["x", 7, False])}
    if kind == "integer":
        low = dice.randrange(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + dice.randrange(100)}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.25}
    if kind == "string":
        return dice.choice([{"type": "string", "maxLength": 6}, {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]$"}])
    if kind == "array":
        return {"type": "array", "items": schema_of(dice, depth + 1), "minItems": dice.randrange(2), "maxItems": 3}
    if kind == "object":
        names = dice.sample(["kind", "size", "label", "on", "parts", "x y"], dice.randrange(1, 4))
        own = {name: schema_of(dice, depth + 1) for name in names}
        return {"type": "object", "properties": own, "required": names[:-1] or names, "additionalProperties": False}
    return {"type": kind}


async def schemas(client: httpx.AsyncClient, count: int) -> dict[str, Any]:
    """The share of answers to random schemas that are valid."""
    good, wrong = 0, []

    async def one(seed: int) -> None:
        nonlocal good
        schema = schema_of(random.Random(seed))
        body = {
            "model": "model", "messages": [{"role": "user", "content": "describe it"}], "max_tokens": 400,
            "temperature": 1.0, "seed": seed,
            "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
        }  # fmt: skip
        got = await client.post("/v1/chat/completions", json=body)
        try:
            jsonschema.validate(json.loads(got.json()["choices"][0]["message"]["content"]), schema)
            good += 1
        except (KeyError, ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"seed {seed}: {str(error)[:100]} {got.text[:200]}")

    waiting = iter(range(count))

    async def worker() -> None:
        for seed in waiting:
            if seed % 20 == 0:
                told(f"schema {seed} of {count}")
            await one(seed)

    await asyncio.gather(*(worker() for _ in range(8)))
    return {"schemas": count, "schema_valid": good / count, "schema_faults": wrong[:3]}


async def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Every figure."""
    found: dict[str, Any] = {}
    parts = given.parts
    pipe = Pipeline.from_pretrained(given.model, backend=given.backend)
    more = ["--backend", given.backend] if given.backend else []
    rounds, tokens = (given.rounds or 3, 48) if given.quick else (given.rounds or 7, 256)
    async with serving(given.model, "--body", "1", "--concurrency", "16", *more) as (client, process, start):
        found["start_s"] = start
        if "speed" in parts:
            found |= await speeds(client, pipe, tokens, rounds)
            found["vs_llama_cpp"] = None
        if "turns" in parts:
            found["second_turn"] = await second_turn(client, 3 if given.quick else 15, 336)
        if "schemas" in parts:
            found |= await schemas(client, given.schemas or (40 if given.quick else 500))
        if "requests" in parts:
            found |= await mixed(client, process, pipe, given.requests or (600 if given.quick else 10_000), given.out)
        if "restart" in parts:
            process.kill()
            process.wait()
            async with serving(given.model, *more) as (again, _, seconds):
                assert (await again.get("/health")).status_code == 200
                found["restart_s"] = seconds
    return found


def main() -> None:
    """Measure and print."""
    parts = ("speed", "turns", "schemas", "requests", "restart")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, requests and schemas")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, help="write JSON to a file, too")
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--backend", help="torch unless given")
    parser.add_argument("--rounds", type=int, help="of the part speed")
    parser.add_argument("--requests", type=int, help="how many mixed requests")
    parser.add_argument("--schemas", type=int, help="how many random schemas")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    given = parser.parse_args()
    found = asyncio.run(measured(given))
    text = json.dumps(found, indent=2)
    if given.out:
        given.out.write_text(text + "\n")
    print(text if given.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
