"""The MCP server, through the official client."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from andes_serve.mcp import box_of, picture_of, server_of

from andes_sdk.errors import InputError
from andes_sdk.inputs.messages import user_message
from andes_sdk.runtime.generation import GenerationOptions

mcp = pytest.importorskip("mcp", reason="the MCP SDK is not installed")


def test_an_assistant_lists_and_calls_both_tools(pipe, picture, caplog):
    image, part = picture("purple")
    shown = part["image_url"]["url"]

    async def talk() -> tuple[list[str], Any, Any, list[Any]]:
        async with mcp.Client(server_of(pipe, 8)) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            asked = await client.call_tool("ask_about_picture", {"image": shown, "question": "What is it?"})
            found = await client.call_tool("find_element", {"image": shown.partition(",")[2], "element": "OK"})
            wrong = [
                await client.call_tool("ask_about_picture", {"image": bad, "question": "?"})
                for bad in ("/etc/passwd", "QUJD", "")
            ]
            return names, asked, found, wrong

    names, asked, found, wrong = asyncio.run(talk())
    assert names == ["ask_about_picture", "find_element"]
    alone = pipe.generate([user_message("What is it?", [image])], GenerationOptions(max_tokens=8)).content
    assert asked.content[0].text == alone
    assert not asked.is_error
    assert not found.is_error
    assert '"found": false' in found.content[0].text.replace("False", "false")
    assert all(one.is_error for one in wrong)
    told = [one.content[0].text for one in wrong]  # the assistant is told what to do
    assert ["no base64" in told[0], "not a picture" in told[1], "empty" in told[2]] == [True] * 3
    assert not [record for record in caplog.records if record.exc_info]


def test_a_box_is_read_from_an_answer():
    said = "It is at <|box_start|>(100,200),(301,400)<|box_end|>."
    assert box_of(said) == {"found": True, "box": [100, 200, 301, 400], "centre": [200, 300], "answer": said}
    assert box_of("nowhere") == {"found": False, "answer": "nowhere"}


def test_pictures_are_base64_and_nothing_else():
    assert picture_of("data:image/png;base64,QUJD") == picture_of("QU\nJD") == b"ABC"
    for wrong in ("file:///etc/passwd", "http://127.0.0.1/", "é"):
        with pytest.raises(InputError, match="no base64"):
            picture_of(wrong)
