"""Messages in OpenAI's shape -> messages of the SDK, pictures opened within the server's limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from andes_sdk.errors import InputError
from andes_sdk.inputs.images import ImageLimits, load_image
from andes_serve.failures import Failure
from andes_serve.limits import Limits


def opened(messages: Sequence[dict[str, Any]], limits: Limits, *, remote: bool) -> list[dict[str, Any]]:
    """The same messages with pictures in place of their addresses.

    Args:
        remote: whether http(s) addresses are fetched; addresses of private networks never are.

    Raises:
        Failure: too many pictures, or an address that is none of a picture. InputError: a picture that is none.
    """
    count = 0
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
            count += 1
            if count > limits.pictures:
                what = f"more than {limits.pictures} pictures in one request"
                raise Failure(400, what, param="messages", code="too_many_pictures")
            parts.append({"type": "image", "image": _picture(part, place, limits, remote)})
        made.append({**message, "content": parts})
    return made


def _picture(part: dict[str, Any], place: str, limits: Limits, remote: bool) -> Any:
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
    own = ImageLimits(max_pixels=limits.pixels, max_bytes=limits.picture, timeout=15.0)
    try:
        return load_image(value, allow_remote=remote, limits=own)
    except InputError as error:
        raise Failure(400, str(error), param=place, code="invalid_image") from None
