"""The server over loopback: many streams at once, its own cost, second turns, thousands of mixed requests, schemas.

    python benchmarks/serve.py --quick --json
    python benchmarks/serve.py --json --out docs/results/serve.json     # 10 000 requests, 500 schemas

A server of its own process runs the shipped model. Single streams, streams at once and decoding in this process take
turns; figures are medians. Answers are kept from ending by a bias on the tokens that end them. Speeds are taken by
clients that read bare sockets and parse nothing meanwhile, since they share the machine with the server.
`second_turn` is about held-out screens of phones (360 × 740 and 390 × 844), `second_turn_small` about 336 × 336.
`vs_llama_cpp` comes from `serve_peer.py`; without xllamacpp it is null. `restart_s` is from the start of a process
that serves the model in 4 bits, after the one before was killed under load, to its first answer; `import_torch_s`
stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from andes_serve.constraints import Grammars, guided
from serve_mixed import mixed, shown, told
from serve_peer import compare, raw

from andes_sdk import Pipeline
from andes_sdk.runtime.generation import GenerationOptions

ROOT = Path(__file__).parents[1]
SHIPPED = "andes-nano"
HELD_OUT = ROOT / "examples/nano/held_out"
QUESTION = "what is the color of the shape?"
STREAMS = 16
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Modules are compiled once, as in any installation."""


@asynccontextmanager
async def serving(
    model: str | Path, *more: str
) -> AsyncIterator[tuple[httpx.AsyncClient, subprocess.Popen[str], float]]:
    """A server -> a client of it, its process, and the seconds until it answered."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "andes_sdk", "serve", str(model), "--name", "model", "--port", "0", *more],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ENVIRONMENT,
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


def single(port: int, body: dict[str, Any]) -> float:
    """Seconds from token to token of one stream."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer, parts = raw(port, "/v1/chat/completions", asked)
    times = [at for at, part in parts if b'"delta":{' in part]
    return (times[-1] - times[0]) / (int(answer.rpartition(b'"completion_tokens":')[2].split(b",")[0]) - 1)


def together(port: int, body: dict[str, Any]) -> float:
    """Tokens per second of many streams."""
    bodies = [{**body, "temperature": 1.0, "seed": n, "stream": True} for n in range(STREAMS)]
    start = time.perf_counter()
    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(lambda one: raw(port, "/v1/chat/completions", one), bodies))
    return STREAMS * body["max_tokens"] / (time.perf_counter() - start)


async def speeds(client: httpx.AsyncClient, pipe: Pipeline, tokens: int, rounds: int) -> dict[str, float]:
    """Many streams against one, and one against this process."""
    bias = {str(n): -100.0 for n in {pipe.tokenizer.eos, pipe.tokenizer.pad}}
    body = {
        "model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": tokens, "logit_bias": bias,
    }  # fmt: skip
    held = guided(Grammars(pipe), None, bias, "")
    one, many, own = [], [], []
    port = client.base_url.port
    assert port is not None
    told("warming up")
    await asyncio.to_thread(single, port, {**body, "max_tokens": 4})
    pipe.generate(QUESTION, GenerationOptions(max_tokens=4))
    for number in range(rounds):
        told(f"speed, round {number + 1} of {rounds}")
        one.append(1 / await asyncio.to_thread(single, port, body))
        answer = pipe.generate(QUESTION, GenerationOptions(max_tokens=tokens, constraint=held))
        own.append(answer.tokens_per_second)
        many.append(await asyncio.to_thread(together, port, body))
    speed = statistics.median(one)
    return {
        "concurrency_gain": statistics.median(many) / speed,
        "overhead": statistics.median(own) / speed,
        "tokens_per_second": speed,
        "tokens_per_second_in_process": statistics.median(own),
        "tokens_per_second_of_16": statistics.median(many),
    }


def screens() -> list[dict[str, Any]]:
    """Screens of phones, as parts of messages."""
    made = []
    for line in (HELD_OUT / "mobile.jsonl").read_text(encoding="utf-8").splitlines():
        data = base64.b64encode((HELD_OUT / json.loads(line)["images"][0]).read_bytes()).decode()
        made.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return made


async def second_turn(client: httpx.AsyncClient, pictures: list[dict[str, Any]]) -> float:
    """Time to the first token of a second question about a picture, to that of the first."""
    ratios = []
    for number, picture in enumerate(pictures):
        told(f"second turn, picture {number} of {len(pictures)}")
        first = [{"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}]
        body = {"model": "model", "max_tokens": 8}
        before, _, _, text = await stream(client, {**body, "messages": first})
        more = [*first, {"role": "assistant", "content": text}, {"role": "user", "content": "what is the shape?"}]
        after, _, _, _ = await stream(client, {**body, "messages": more})
        ratios.append(after / before)
    return statistics.median(ratios[1:])


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


async def restarts(model: str | Path, rounds: int) -> dict[str, Any]:
    """Servers of the packed model, each killed while it answers."""
    again, torch = [], []
    body = {"model": "model", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2000}
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "model.andes"
        pack = [sys.executable, "-m", "andes_sdk", "pack", "--model", str(model), "--format", "w4_g32"]
        subprocess.run([*pack, "--out", str(packed)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        for number in range(rounds + 1):
            told(f"restart {number} of {rounds}")
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch"], check=True, env=ENVIRONMENT)
            torch.append(time.perf_counter() - start)
            start = time.perf_counter()
            async with serving(packed, "--backend", "numba") as (client, process, _):
                got = await client.post("/v1/chat/completions", json={**body, "max_tokens": 1})
                assert got.status_code == 200
                again.append(time.perf_counter() - start)
                load = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(4)]
                await asyncio.sleep(0.3)
                process.kill()
                process.wait()
                await asyncio.gather(*load, return_exceptions=True)
    return {"restart_s": statistics.median(again[1:]), "import_torch_s": statistics.median(torch[1:])}


def peer(rounds: int) -> dict[str, Any]:
    """Against llama.cpp's server."""
    if find_spec("xllamacpp") is None:
        return {"vs_llama_cpp": None}
    return compare(rounds, told)


def earlier(out: Path | None, parts: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """What a file holds already; its `quick` says of each part whether it was measured with `--quick`.

    Raises:
        SystemExit: quick and full figures would stand side by side, or quick ones in the place of full ones.
    """
    found: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    marks: dict[str, bool] = found.get("quick", {})
    if found.keys() - {"start_s"} and not marks:
        raise SystemExit(f"{out}: it does not say whether its figures are quick or full: give another --out")
    others = [part for part, mark in marks.items() if mark != quick and (quick or part not in parts)]
    if others:
        kinds = ("full", "quick") if quick else ("quick", "full")
        what = f"{out}: its figures of {', '.join(others)} are {kinds[0]}, these would be {kinds[1]}"
        raise SystemExit(f"{what}: give another --out, or measure all parts alike")
    return found


async def measured(given: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """Every figure, beside those that were `found` before."""
    parts = given.parts

    def keep(more: dict[str, Any], part: str = "") -> None:
        found.update(more)
        if part:
            found["quick"] = {**found.get("quick", {}), part: given.quick}
        if given.out:  # what is measured stays, whatever comes
            given.out.write_text(json.dumps(found, indent=2) + "\n")

    pipe = Pipeline.from_pretrained(given.model, backend=given.backend)
    more = ["--backend", given.backend] if given.backend else []
    rounds, tokens = (given.rounds or 5, 96) if given.quick else (given.rounds or 9, 256)
    async with serving(given.model, "--body", "1", "--concurrency", "16", *more) as (client, process, start):
        keep({"start_s": start})
        if "speed" in parts:
            keep(await speeds(client, pipe, tokens, rounds), "speed")
        if "turns" in parts:
            count = 4 if given.quick else 16
            keep({"second_turn": await second_turn(client, screens()[:count])}, "turns")
            keep({"second_turn_small": await second_turn(client, [shown(seed, 336) for seed in range(count)])}, "turns")
        if "schemas" in parts:
            keep(await schemas(client, given.schemas or (40 if given.quick else 500)), "schemas")
        if "requests" in parts:
            count = given.requests or (600 if given.quick else 10_000)
            keep(await mixed(client, process, pipe, count, lambda some: keep(some, "requests")), "requests")
    if "restart" in parts:
        keep(await restarts(given.model, 3 if given.quick else 7), "restart")
    if "peer" in parts:
        keep(peer(3 if given.quick else 7), "peer")
    return found


def main() -> None:
    """Measure and print."""
    parts = ("speed", "turns", "schemas", "requests", "restart", "peer")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, requests and schemas")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--out", type=Path, help="write JSON, too; the rest of a file stays, if all is quick or all full"
    )
    parser.add_argument("--model", default=SHIPPED, help="a folder or a bundled name")
    parser.add_argument("--backend", help="torch unless given")
    parser.add_argument("--rounds", type=int, help="of the part speed")
    parser.add_argument("--requests", type=int, help="how many mixed requests")
    parser.add_argument("--schemas", type=int, help="how many random schemas")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    given = parser.parse_args()
    found = asyncio.run(measured(given, earlier(given.out, given.parts, quick=given.quick)))
    text = json.dumps(found, indent=2)
    print(text if given.json else "\n".join(f"{key}: {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
