"""Where a sample says which pictures belong to it, and the same sample with those places changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Change = Callable[[Any], Any]
"""A picture's source (path, URL, bytes) -> what takes its place."""

_TALK = ("messages", "conversations", "prompt")
_SCHEMES = ("data:", "http:", "https:", "file:")


def change_pictures(entry: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """A sample whose pictures are `change(picture)`; names that messages use for pictures in `images` stay."""
    images = entry.get("images")
    names = {i["path"] for i in images or () if isinstance(i, Mapping) and i.get("bytes") is not None and i.get("path")}

    def turn(value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            changed = change(value["bytes"])
            return {**value, "bytes": changed} if isinstance(changed, bytes) else changed
        if isinstance(value, Mapping) and "path" in value:
            return {**value, "path": change(value["path"])}
        if isinstance(value, Mapping) and "url" in value:
            return {**value, "url": turn(value["url"])}
        return value if value is None or (isinstance(value, str) and value in names) else change(value)

    out = dict(entry)
    if isinstance(images, list):
        out["images"] = [turn(image) for image in images]
    for key in _TALK:
        if key in entry:
            out[key] = _walk(entry[key], turn)
    return out


def _walk(value: Any, turn: Change) -> Any:
    if isinstance(value, list):
        return [_walk(item, turn) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get("type")
    if kind in ("image", "image_url") and value.get(kind) is not None:
        return {**value, kind: turn(value[kind])}
    return {**value, "content": _walk(value["content"], turn)} if "content" in value else value


def pictures(entry: Mapping[str, Any]) -> list[Any]:
    """Sources of a sample's pictures, each once, in the order in which they are met."""
    found: list[Any] = []

    def note(source: Any) -> Any:
        if source not in found:
            found.append(source)
        return source

    change_pictures(entry, note)
    return found


def is_path(source: Any) -> bool:
    """Whether a picture's source is a path, and neither a URL nor bytes."""
    return isinstance(source, str | Path) and not str(source).lower().startswith(_SCHEMES)


class Placed(dict[str, Any]):
    """A sample that knows the folder of its file."""

    folder: Path


def shape_problem(entry: Mapping[str, Any]) -> str:
    """Why nothing can be found in a sample, or nothing."""
    for key in ("images", "conversations"):
        if not isinstance(entry.get(key), list | None):
            return f"`{key}` is no list"
    named = [image.get("path") for image in entry.get("images") or () if isinstance(image, Mapping)]
    return "" if all(isinstance(name, str | None) for name in named) else "a path in `images` is no text"


def absolute(entry: Mapping[str, Any], folder: Path) -> Placed:
    """A sample whose relative picture paths, relative to `folder`, are absolute."""
    placed = Placed(change_pictures(entry, lambda s: str((folder / s).absolute()) if is_path(s) else s))
    placed.folder = folder
    return placed


def messages(entry: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every message of a sample, of all its conversations."""
    talks = [entry.get("messages") or entry.get("prompt") or [], *(entry.get("conversations") or [])]
    for talk in talks:
        yield from (m for m in talk if isinstance(m, Mapping)) if isinstance(talk, list) else ()


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message without its pictures."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text") or "") for p in parts if isinstance(p, Mapping))


def texts(entry: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a sample that a model may learn from: its messages, and both answers of a preference pair."""
    yield from map(text_of, messages(entry))
    for key in ("chosen", "rejected"):
        said = entry.get(key)
        if isinstance(said, str):
            yield said
        yield from (text_of(m) for m in said if isinstance(m, Mapping)) if isinstance(said, list) else ()


def answers(entry: Mapping[str, Any]) -> str:
    """All assistant text of a sample, and what a preference pair's line chose."""
    said = [text_of(m) for m in messages(entry) if m.get("role") == "assistant"]
    return "\n".join([*said, *([entry["chosen"]] if isinstance(entry.get("chosen"), str) else [])])


def questions(entry: Mapping[str, Any]) -> str:
    """All text of a sample that is no answer."""
    return "\n".join(text_of(m) for m in messages(entry) if m.get("role") != "assistant")
