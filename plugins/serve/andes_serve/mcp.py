"""`andes mcp`: two tools for assistants over stdin and stdout: ask about a picture, find an element on a screenshot."""

from __future__ import annotations

import base64
import binascii
import functools
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andes_sdk.cli import loading
from andes_sdk.cli.console import clean, stderr
from andes_sdk.errors import AndesError, BackendUnavailable, InputError

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

BOX = re.compile(r"\((\d{1,4})\s*,\s*(\d{1,4})\)\s*,\s*\((\d{1,4})\s*,\s*(\d{1,4})\)")
WHERE = "Where is {}? Answer with its box."
MOST = 20 << 20


def picture_of(text: str) -> bytes:
    """A picture as an assistant sends it: base64, or a data URL of it. Paths and addresses are not read.

    Raises:
        InputError: it is neither, or larger than 20 MiB.
    """
    body = text.partition(",")[2] if text[:5].lower() == "data:" else text
    if len(body) > MOST * 4 // 3 + 4:
        raise InputError("the picture is larger than 20 MiB", who="image")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        fix = "send base64 of a PNG, JPEG or WebP file"
        raise InputError("this is no base64", who="image", why=str(error), fix=fix) from None


def box_of(said: str) -> dict[str, Any]:
    """The first box of an answer, and its centre, in thousandths."""
    match = BOX.search(said)
    if match is None:
        return {"found": False, "answer": said}
    x0, y0, x1, y1 = (int(part) for part in match.groups())
    return {"found": True, "box": [x0, y0, x1, y1], "centre": [(x0 + x1) // 2, (y0 + y1) // 2], "answer": said}


def tools_of(pipeline: Pipeline, max_tokens: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two tools on a pipeline."""
    from andes_sdk.inputs.messages import user_message
    from andes_sdk.runtime.options import GenerationOptions

    turn = threading.Lock()  # tools run on threads, a pipeline on one at a time

    def answer(image: str, question: str) -> str:
        asked = [user_message(question, [picture_of(image)])]
        with turn:
            return pipeline.generate(asked, GenerationOptions(max_tokens=max_tokens)).content

    def ask_about_picture(image: str, question: str) -> str:
        """Answer a question about a picture (base64 of a PNG, JPEG or WebP file, or a data URL)."""
        return answer(image, question)

    def find_element(image: str, element: str) -> dict[str, Any]:
        """Find an element on a screenshot, named or described: its box and centre in thousandths of width and height.

        `found` is false where the model names no box; `answer` is what it said.
        """
        return box_of(answer(image, WHERE.format(element)))

    return ask_about_picture, find_element


def server_of(pipeline: Pipeline, max_tokens: int) -> Any:
    """An MCP server with the two tools.

    Raises:
        BackendUnavailable: the SDK is not installed.
    """
    try:
        from mcp.server import MCPServer
    except ImportError:
        fix = "pip install 'andes-serve[mcp]'"
        raise BackendUnavailable("the MCP SDK is not installed", who="andes mcp", fix=fix) from None
    from mcp.server.mcpserver.exceptions import ToolError

    def told(tool: Callable[..., Any]) -> Callable[..., Any]:
        """The same tool; what is wrong with a request is told to the assistant, and is no crash."""

        @functools.wraps(tool)
        def call(**given: str) -> Any:
            try:
                return tool(**given)
            except AndesError as error:
                raise ToolError(str(error)) from None

        return call

    server = MCPServer("andes", instructions="Answers about pictures, and finds elements on screenshots.")
    for tool in tools_of(pipeline, max_tokens):
        server.add_tool(told(tool))
    return server


@clean
def mcp(
    model: Annotated[str | None, typer.Argument(help="As `andes serve`.")] = None,
    config: loading.Config = None,
    plugin: loading.Plugins = None,
    option: loading.Options = None,
    device: loading.Device = None,
    dtype: loading.Dtype = None,
    backend: loading.Backend = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
) -> None:
    """Serve MODEL to an assistant over MCP (stdin and stdout): ask about a picture, find an element."""
    pipeline = loading.open_pipeline(
        model, config, plugins=plugin, options=option, device=device, dtype=dtype, backend=backend
    )
    server = server_of(pipeline, max_tokens)
    loading.ready(pipeline)
    stderr().print("andes mcp: ready", markup=False)
    server.run(transport="stdio")
