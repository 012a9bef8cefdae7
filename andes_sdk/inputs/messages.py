"""OpenAI-style messages -> turns for the chat template, and what stands beside them: pictures, and other media.

Nothing is dropped in silence: a key that has no effect here is an error that names its place.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from andes_sdk.errors import InputError
from andes_sdk.reading import bounded
from andes_sdk.types import Slot, Turn

if TYPE_CHECKING:
    from andes_sdk.inputs.sources import ImageSource

ROLES = ("system", "user", "assistant")

TYPES = ("text", "image_url", "image")
"""Types of parts that need no modality; the key that holds a part's value has the name of its type."""
_ALIASES = {
    "developer": "system", "human": "user", "bot": "assistant", "model": "assistant", "gpt": "assistant",
    "input_text": "text", "output_text": "text", "input_image": "image_url", "img": "image",
}  # fmt: skip
_EXAMPLE = '{"role": "user", "content": "…"}'


def user_message(text: str, images: Sequence[ImageSource] = ()) -> dict[str, Any]:
    """One user message: the pictures in order, then the text.

    Raises:
        InputError: `images` is one picture rather than a list of them.
    """
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or not isinstance(images, Iterable):
        raise InputError("expected a list of pictures", who="images", why=_got(images), fix="write images=[picture]")
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def parse_messages(
    messages: str | Sequence[Mapping[str, Any]], kinds: Iterable[str] = ("image",)
) -> tuple[list[Turn], dict[str, list[Any]]]:
    """Check messages and split text from the rest.

    A message is `{"role": "system" | "user" | "assistant", "content": str | list of parts}`. A part is one of these:

    - `{"type": "text", "text": str}`
    - `{"type": "image_url", "image_url": {"url": str} or str}`
    - `{"type": "image", "image": path, bytes or PIL image}`
    - `{"type": kind, kind: item}` for the other `kinds`, the names of modalities

    What is no text stands in user messages only. A plain string is one user message. Keys with the value None count as
    absent.

    Returns:
        One turn per message, with slots where something else than text stands, and by kind what stands there, in order
        (pictures are not loaded).

    Raises:
        InputError: `who` is the place, for example `messages[1].content[0].type`.
    """
    if isinstance(messages, str):
        return [Turn("user", (_text(messages, "messages"),))], {}
    try:
        bounded(messages)
    except ValueError as error:
        raise InputError("these are no messages", who="messages", why=str(error), fix=f"write [{_EXAMPLE}]") from None
    if isinstance(messages, Mapping):
        raise InputError("expected a list of messages, got one", who="messages", fix="write [message]")
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray | memoryview):
        raise InputError("expected a list of messages", who="messages", why=_got(messages), fix=f"write [{_EXAMPLE}]")
    if not messages:
        raise InputError("there is no message", who="messages", why="the list is empty", fix=f"write [{_EXAMPLE}]")
    types = tuple(dict.fromkeys((*TYPES, *kinds)))
    items: dict[str, list[Any]] = {}
    return [_turn(message, f"messages[{i}]", types, items) for i, message in enumerate(messages)], items


def _turn(message: Any, place: str, types: tuple[str, ...], items: dict[str, list[Any]]) -> Turn:
    _mapping(message, place, ("role", "content"), _EXAMPLE)
    role = _one_of(_value(message, "role", place), ROLES, f"{place}.role", "role")
    content = _value(message, "content", place)
    if isinstance(content, str):
        return Turn(role, (_text(content, f"{place}.content"),))
    place = f"{place}.content"
    if isinstance(content, Mapping):
        raise InputError("expected text or a list of parts, got one part", who=place, fix="write [part]")
    if not isinstance(content, list | tuple):
        raise InputError("expected text or a list of parts", who=place, why=_got(content), fix="pass a str or a list")
    if not content:
        raise InputError("the message is empty", who=place, why="the list has no part", fix="add a part, or pass ''")
    parts: list[str | Slot] = []
    for index, part in enumerate(content):
        kind, value = _part(part, f"{place}[{index}]", types)
        if kind == "text":
            parts.append(value)
            continue
        if role != "user":
            why, fix = f"this message is the {role}'s", "move it to a user message"
            noun = "a picture" if kind == "image" else f"a part of type {kind!r}"
            raise InputError(f"{noun} may stand in user messages only", who=f"{place}[{index}]", why=why, fix=fix)
        items.setdefault(kind, []).append(value)
        parts.append(Slot(kind))
    return Turn(role, tuple(parts))


def _part(part: Any, place: str, types: tuple[str, ...]) -> tuple[str, Any]:
    """ "text", "image" or the name of a modality, and the text, the picture's source or the item."""
    if isinstance(part, str):
        fix = 'write {"type": "text", "text": "…"}'
        raise InputError("expected a part, got text", who=place, fix=fix)
    _mapping(part, place, None, '{"type": "text", "text": "…"}')
    kind = _one_of(_value(part, "type", place), types, f"{place}.type", "type of part")
    if kind not in part and (other := next((k for k in ("url", "path", "image_url", "data") if k in part), None)):
        fix = f'did you mean {{"type": {kind!r}, {kind!r}: …}}?'
        raise InputError(f"{kind!r} is needed", who=f"{place}.{kind}", why=f"it has {other!r} instead", fix=fix)
    _mapping(part, place, ("type", kind), "")
    value, place = _value(part, kind, place), f"{place}.{kind}"
    if kind == "text":
        return kind, _text(value, place)
    if kind == "image":
        return kind, _picture(value, place)
    if kind != "image_url":
        return kind, value
    if isinstance(value, str):
        return "image", value
    _mapping(value, place, ("url", "detail"), '{"url": "…"}')
    if value.get("detail") not in (None, "auto"):
        fix = "leave it out, and set the resolution in the pipeline's preprocessing"
        raise InputError("detail has no effect here", who=f"{place}.detail", why=_got(value["detail"]), fix=fix)
    return "image", _text(_value(value, "url", place), f"{place}.url")


def _mapping(value: Any, place: str, keys: tuple[str, ...] | None, example: str) -> None:
    """Refuse what is not a mapping, and keys that nothing reads (None: any key)."""
    if not isinstance(value, Mapping):
        raise InputError("expected a dictionary", who=place, why=_got(value), fix=f"write {example}")
    for key, entry in value.items():
        if keys is not None and key not in keys and entry is not None:
            fix = _suggest(key, [known for known in keys if known not in value]) or "leave it out"
            why = f"keys with a meaning: {', '.join(keys)}"
            raise InputError("nothing reads this key", who=f"{place}.{key}", why=why, fix=fix)


def _value(mapping: Mapping[str, Any], key: str, place: str) -> Any:
    value = mapping.get(key)
    if value is None:
        why = f"it is {'None' if key in mapping else 'missing'}; keys present: {', '.join(map(str, mapping)) or 'none'}"
        raise InputError(f"{key!r} is needed", who=f"{place}.{key}", why=why, fix=f"add {key!r}")
    return value


def _one_of(value: Any, known: tuple[str, ...], place: str, noun: str) -> str:
    if isinstance(value, str) and value in known:
        return value
    fix = _suggest(value, known) or f"write one of {', '.join(known)}"
    raise InputError(f"unknown {noun} {value!r}", who=place, why=f"known: {', '.join(known)}", fix=fix)


def _suggest(value: object, known: Sequence[str]) -> str:
    text = str(value).lower()
    close = [_ALIASES[text]] if _ALIASES.get(text) in known else difflib.get_close_matches(text, known, n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise InputError("expected text", who=place, why=_got(value), fix="pass a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a character: no tokenizer has ids for it
        what, fix = "text that is not valid Unicode", "write whole characters"
        raise InputError(what, who=place, why=str(error), fix=fix) from None
    return value


def _picture(value: Any, place: str) -> Any:
    # By name, so that checking a message imports no Pillow.
    pil = any((kind.__module__, kind.__name__) == ("PIL.Image", "Image") for kind in type(value).__mro__)
    if not pil and not isinstance(value, str | os.PathLike | bytes | bytearray | memoryview):
        fix = "pass a path, a URL, the bytes of a picture file, or a PIL image"
        raise InputError("this is not a picture", who=place, why=_got(value), fix=fix)
    return value


def _got(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else ""
    return f"got {type(value).__name__}" + (f" {text}" if text and len(text) <= 60 else "")
