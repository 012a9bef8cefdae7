"""Messages in OpenAI's shape -> messages of the SDK: pictures are fetched and measured, then opened."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from attrs import frozen
from PIL import Image

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import ImageLimits, load_image
from andes_sdk.inputs.sources import read_source
from andes_serve.failures import Failure
from andes_serve.limits import Limits

CHARACTER, LITTLE = 128, 1 << 16
"""Bytes that a tokenizer takes for a character; and characters below which they are not counted."""

EACH, LARGEST = 4, 12
"""Bytes for each pixel of all pictures (RGB, and patches of what is left after resizing); and, for the largest one,
bytes that decoding and resizing take on top."""


@frozen
class Picture:
    """A picture as it came. place: of its address in the request. pixels: as its header says, 0 where it says none."""

    data: bytes
    place: str
    pixels: int


def fetched(
    messages: Sequence[dict[str, Any]], limits: Limits, *, remote: bool
) -> tuple[list[dict[str, Any]], list[Picture]]:
    """The same messages with what their addresses hold in place of these, not decoded yet, and all pictures of them.

    Args:
        remote: whether http(s) addresses are fetched; addresses of private networks never are.

    Raises:
        Failure: too many pictures, or an address that is none of a picture.
    """
    found: list[Picture] = []
    made: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, list):
            made.append(message)
            continue
        parts: list[Any] = []
        for index, part in enumerate(content):
            place = f"messages[{number}].content[{index}]"
            if not isinstance(part, dict) or part.get("type") != "image_url":
                if isinstance(part, dict) and part.get("type") == "image":  # a path, to the SDK: not from outside
                    fix = "unknown type of part 'image': write {'type': 'image_url', 'image_url': {'url': …}}"
                    raise Failure(400, fix, param=f"{place}.type", code="invalid_value")
                parts.append(part)
                continue
            if len(found) == limits.pictures:
                what = f"more than {limits.pictures} pictures in one request"
                raise Failure(400, what, param="messages", code="too_many_pictures")
            found.append(_picture(part, place, limits, remote))
            parts.append({"type": "image", "image": found[-1]})
        made.append({**message, "content": parts})
    return made, found


def coming(messages: Sequence[dict[str, Any]], limits: Limits) -> int:
    """Bytes that `fetched` may hold at most; 0: there are no pictures."""

    def size(part: dict[str, Any]) -> int:
        value = part.get("image_url")
        value = value.get("url") if isinstance(value, dict) else value
        if not isinstance(value, str):
            return 1  # refused
        return len(value) if value[:5].lower() == "data:" else limits.picture

    parts = [part for m in messages if isinstance(m.get("content"), list) for part in m["content"]]
    found = [size(part) for part in parts if isinstance(part, dict) and part.get("type") == "image_url"]
    return sum(found[: limits.pictures + 1])  # of more than that, none is kept


def characters(messages: Sequence[dict[str, Any]]) -> int:
    """Of all texts."""
    contents = [m.get("content") for m in messages]
    parts = [part.get("text") for c in contents if isinstance(c, list) for part in c if isinstance(part, dict)]
    return sum(len(text) for text in (*contents, *parts) if isinstance(text, str))


def needed(pictures: Sequence[Picture], text: int = 0) -> int:
    """Bytes that pictures, and so many characters, take until the engine has them."""
    return (
        (CHARACTER * text if text > LITTLE else 0)
        + sum(len(p.data) + EACH * p.pixels for p in pictures)
        + LARGEST * max((p.pixels for p in pictures), default=0)
    )


def opened(messages: Sequence[dict[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """Messages whose pictures are fetched -> the same with pictures that are decoded.

    Raises:
        Failure: a picture that is none, or too large.
    """

    def load(picture: Picture) -> Image.Image:
        try:
            return load_image(picture.data, limits=_limits(limits))
        except InputError as error:
            raise Failure(400, str(error), param=picture.place, code="invalid_image") from None

    def part_of(part: Any) -> Any:
        picture = part.get("image") if isinstance(part, dict) else None
        return {**part, "image": load(picture)} if isinstance(picture, Picture) else part

    return [
        {**m, "content": [part_of(p) for p in m["content"]]} if isinstance(m.get("content"), list) else m
        for m in messages
    ]


def _limits(limits: Limits) -> ImageLimits:
    return ImageLimits(max_pixels=limits.pixels, max_bytes=limits.picture, timeout=15.0)


def _pixels(data: bytes) -> int:
    """As the header says; whoever opens the picture tells what is wrong with it."""
    try:
        with Image.open(BytesIO(data)) as image:
            return image.width * image.height
    except Exception:
        return 0


def _picture(part: dict[str, Any], place: str, limits: Limits, remote: bool) -> Picture:
    value = part.get("image_url")
    if isinstance(value, dict):
        for key in value:
            if key not in ("url", "detail"):
                raise Failure(400, f"unknown key {key!r}", param=f"{place}.image_url.{key}", code="unknown_parameter")
        if value.get("detail") not in (None, "auto"):
            fix = "detail has no effect here: leave it out, or send image_size"
            raise Failure(400, fix, param=f"{place}.image_url.detail", code="unsupported_parameter")
        value = value.get("url")
    for key in part:
        if key not in ("type", "image_url"):
            raise Failure(400, f"unknown key {key!r}", param=f"{place}.{key}", code="unknown_parameter")
    place += ".image_url.url"
    if not isinstance(value, str):
        raise Failure(400, "expected the address of a picture", param=place, code="invalid_value")
    kind = value[:8].lower()
    if not kind.startswith("data:"):
        if not kind.startswith(("http://", "https://")):
            what = "expected a data URL (data:image/png;base64,…)"
            raise Failure(400, what, param=place, code="invalid_image_url")
        if not remote:
            what = "this server fetches no pictures: send a data URL, or start it with --allow-remote"
            raise Failure(400, what, param=place, code="remote_images_disabled")
    try:
        data = read_source(value, "the picture", remote, _limits(limits))
    except InputError as error:
        raise Failure(400, str(error), param=place, code="invalid_image") from None
    return Picture(data, place, _pixels(data))
