"""Ask a server that runs: an answer, a stream, JSON that fits a schema, and a second turn about a picture.

andes serve --port 8000 &
python examples/serve_client.py --url http://127.0.0.1:8000/v1 --picture shape.png
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

from openai import OpenAI
from PIL import Image, ImageDraw


def part_of(path: Path | None) -> dict[str, Any]:
    """A picture as a part of a message; without a file a blue circle."""
    if path is not None:
        data = path.read_bytes()
    else:
        image, buffer = Image.new("RGB", (64, 64), "white"), io.BytesIO()
        ImageDraw.Draw(image).ellipse((16, 16, 48, 48), fill="blue")
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def talk(client: OpenAI, model: str, picture: dict[str, Any]) -> dict[str, Any]:
    """A conversation -> what was said."""
    asked: list[Any] = [
        {"role": "user", "content": [picture, {"type": "text", "text": "what is the color of the shape?"}]}
    ]
    stream = client.chat.completions.create(model=model, messages=asked, max_tokens=16, stream=True)
    first = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    asked += [{"role": "assistant", "content": first}, {"role": "user", "content": "what is the shape?"}]
    second = client.chat.completions.create(model=model, messages=asked, max_tokens=16)
    schema = {
        "type": "object", "properties": {"shape": {"enum": ["circle", "rectangle", "triangle"]}}, "required": ["shape"],
        "additionalProperties": False,
    }  # fmt: skip
    form: Any = {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}}
    fits = client.chat.completions.create(model=model, messages=asked, response_format=form, max_tokens=40)
    details = second.usage.prompt_tokens_details if second.usage else None
    return {
        "color": first,
        "shape": second.choices[0].message.content,
        "read_before": details.cached_tokens if details else 0,
        "json": json.loads(fits.choices[0].message.content or "null"),
    }


def main() -> None:
    """Ask and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--key", default="none")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    client = OpenAI(base_url=given.url, api_key=given.key)
    print(json.dumps(talk(client, client.models.list().data[0].id, part_of(given.picture)), indent=2))


if __name__ == "__main__":
    main()
