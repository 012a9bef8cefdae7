"""`andes generate`: one answer for programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json
from andes_sdk.errors import InputError
from andes_sdk.reading import parse_json


def read_messages(source: str) -> Any:
    """Messages from a JSON file, or from stdin for '-'.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        return parse_json(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "the messages cannot be read",
            who="stdin" if source == "-" else source,
            why=str(error),
            fix='write JSON: [{"role": "user", "content": "…"}]',
        ) from None


@clean
@loading.requesting
def generate(
    request: loading.Request,
    prompt: Annotated[str | None, typer.Argument(help="The question.")] = None,
    messages: Annotated[str | None, typer.Option(help="JSON file with a list of messages; - for stdin.")] = None,
    as_json: Json = False,
) -> None:
    """Answer a PROMPT or a conversation (--messages)."""
    if (prompt is None) == (messages is None):
        raise typer.BadParameter("give a PROMPT or --messages")
    if request.image and prompt is None:
        raise typer.BadParameter("--image goes with a PROMPT; messages hold their own pictures")
    if request.logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs are shown with --json only")
    options = request.generation()
    asked = None if messages is None else read_messages(messages)
    pipeline = request.pipeline()
    if asked is None:
        from andes_sdk.inputs.messages import user_message

        asked = [user_message(str(prompt), request.image or [])]
    answer = pipeline.generate(asked, options, allow_remote=request.allow_remote)
    if as_json:
        print_json(answer.to_dict())
    else:
        typer.echo(answer.text)
