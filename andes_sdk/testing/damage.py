"""Damage for fuzz tests, as strategies of hypothesis: to bytes, and to what stands in JSON and TOML."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

CASES = settings(
    max_examples=int(os.environ.get("ANDES_FUZZ", "60")), deadline=None, suppress_health_check=[*HealthCheck]
)
"""As many cases as ANDES_FUZZ says, or 60."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**70, 10**30, 1e308, math.nan, -math.inf, "", "x", "x" * 5000, "\ud800",
    "\0", "../..", "~nobody/x", [], [1], {}, {"a": 1},
    json.loads("[" * 80 + "]" * 80),
)  # fmt: skip
"""Values that fit hardly anywhere; `ODD_TOML` has those too that only TOML has words for."""
ODD_TOML: tuple[Any, ...] = (*ODD, date(2026, 1, 2), 1 << 20_000)
MARKS = (b"\n", b"\r", b"\0", b'"', b"\\", b"\x1a", b"\xef\xbb\xbf", b"}", b"]", b",")
"""Bytes with a meaning of their own in texts."""


@contextmanager
def catalogue() -> Iterator[None]:
    """Within: what is installed is listed once, not for every pipeline, which takes longer than a small model."""
    with mock.patch("importlib.metadata.entry_points", functools.cache(importlib.metadata.entry_points)):
        yield


@st.composite
def damaged(draw: Callable[..., Any], content: bytes, limit: int | None = None) -> bytes:
    """Bytes with one thing wrong, of the first `limit` where that is given."""
    end = min(len(content), len(content) if limit is None else limit)
    at = draw(st.integers(0, max(end - 1, 0)))
    stop = min(at + draw(st.sampled_from([1, 2, 4, 8, 64, 1024])), end)
    before, part, after = content[:at], content[at:stop], content[stop:]
    kinds = ["flip", "mark", "cut", "drop", "insert", "nest", "repeat", "zeros", "ones", "swap"]
    if (kind := draw(st.sampled_from(kinds))) in ("cut", "swap"):
        return before if kind == "cut" else part + after + before
    new = draw(st.binary(min_size=1, max_size=9) | st.sampled_from(MARKS)) if kind in ("insert", "mark") else b""
    made = {"drop": b"", "insert": new + part, "mark": new + part[len(new) :], "nest": b"[" * 100_000 + part}
    made |= {"repeat": part * 3, "zeros": bytes(len(part)), "ones": b"\xff" * len(part)}
    made["flip"] = bytes([part[0] ^ draw(st.integers(1, 255))]) + part[1:] if kind == "flip" and part else part
    return before + made[kind] + after


@st.composite
def altered(draw: Callable[..., Any], value: Any, odd: tuple[Any, ...] = ODD) -> Any:
    """Plain data with one value replaced by an odd one, or one key gone, renamed, or one item twice, at any depth."""
    keys = sorted(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or not draw(st.integers(0, 9)):
        return draw(st.sampled_from(odd))
    key, copy = draw(st.sampled_from(keys)), value.copy()
    kind = draw(st.sampled_from(["inside", "inside", "inside", "inside", "remove", "more"]))
    if kind == "inside":
        copy[key] = draw(altered(value[key], odd))
    elif kind == "remove":
        del copy[key]
    elif isinstance(value, dict):
        copy[f"{key}x"] = copy.pop(key)
    else:
        copy.append(value[key])
    return copy


def to_toml(value: Any) -> bytes:
    """Plain data as TOML, one key a line; None is left out, what has no words in TOML is written wrongly."""
    lines = [_toml({k: v})[1:-1] for k, v in value.items()] if isinstance(value, dict) else [_toml(value)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, date | float):
        return str(value)
    long = isinstance(value, int) and abs(value) >> 200
    return hex(value) if long else '""' if value is None else json.dumps(value, ensure_ascii=False)
