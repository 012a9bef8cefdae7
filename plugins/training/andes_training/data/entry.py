"""The keys of a data line: what has a meaning is honoured, what seems to have one and has none is refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from andes_training.data.bad import BadSample

KEYS = ("messages", "conversations", "prompt", "chosen", "rejected", "images", "image", "system", "think", "answer")
"""Keys that are read; `image` is one picture of `images`, `system` a first message."""

UNREAD = frozenset({
    "video", "videos", "audio", "audios", "tool", "tools", "tool_calls", "functions", "history", "query", "response",
})  # fmt: skip
"""Keys with which other programs give a model something to see or to say, and which nothing here reads."""


def checked_entry(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A data line of messages with `image` and `system` in their places; other keys are notes, which rewards may read.

    Raises:
        BadSample: a key that nothing reads and that is not a note, or one that cannot be honoured.
    """
    if not entry.keys() & {"messages", "conversations", "prompt"}:
        return entry
    for key, value in entry.items():
        if value is None or key in KEYS:
            continue
        close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.85)
        if key in UNREAD or close:
            fix = f"did you mean {close[0]!r}?" if close else "write it into the messages, or leave it out"
            raise BadSample(f"nothing reads {key!r}", who=where, why=f"keys with a meaning: {', '.join(KEYS)}", fix=fix)
    if entry.get("messages") is not None and entry.get("conversations") is not None:
        fix = "keep one of them; `conversations` are several about the same pictures"
        raise BadSample("has `messages` and `conversations`", who=where, fix=fix)
    if entry.get("image") is not None:
        if entry.get("images") is not None:
            raise BadSample("has `image` and `images`", reason="picture", who=where, fix="keep `images`")
        entry = {**{k: v for k, v in entry.items() if k not in ("image", "images")}, "images": [entry["image"]]}
    return entry if entry.get("system") is None else _with_system(entry, where)


def _with_system(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    system = entry["system"]
    if not isinstance(system, str):
        raise BadSample("`system` is no text", who=where, why=f"it is a {type(system).__name__}", fix="write a text")
    first = {"role": "system", "content": system}
    found = {key: value for key, value in entry.items() if key != "system"}
    for key in ("messages", "conversations", "prompt"):
        if not isinstance(talk := found.get(key), list):
            continue
        many = talk if key == "conversations" else [talk]
        lists = [one for one in many if isinstance(one, list)]
        if any(isinstance(m, Mapping) and m.get("role") == "system" for one in lists for m in one):
            raise BadSample("has `system` and a system message", who=where, fix="keep one of them")
        made = [[first, *one] if isinstance(one, list) else one for one in many]
        found[key] = made if key == "conversations" else made[0]
    return found
