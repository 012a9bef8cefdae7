"""`andes generate`: answers for programs: one prompt, one conversation, or a file of conversations."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from andes_sdk.cli import loading
from andes_sdk.cli.batch import Batch, as_dict
from andes_sdk.cli.console import Json, clean, print_json, stderr
from andes_sdk.errors import InputError


def read_messages(source: str) -> Any:
    """Messages from a JSON file, or from stdin for '-'.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8"))
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
    batch: Annotated[Path | None, typer.Option(help="JSON Lines, one list of messages (or one text) a line.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON Lines of answers to --batch; continued if it exists.")] = None,
    together: Annotated[int, typer.Option(min=1, help="Lines of --batch that are decoded together.")] = 1,
    as_json: Json = False,
) -> None:
    """Answer a PROMPT, a conversation (--messages) or a file of conversations (--batch with --out)."""
    _check_usage(prompt, messages, batch, out, request.image)
    options = request.generation()
    asked = None if messages is None else read_messages(messages)
    pipeline = request.pipeline()
    if batch is not None and out is not None:
        job = Batch(pipeline, options, batch, out, together, request.allow_remote)
        done = job.run(console=None if as_json else stderr())
        if as_json:
            print_json(done)
        if done["failed"]:
            raise typer.Exit(1)
        return
    if asked is None:
        from andes_sdk.inputs.messages import user_message

        asked = [user_message(str(prompt), request.image or [])]
    answer = pipeline.generate(asked, options, allow_remote=request.allow_remote)
    if as_json:
        print_json(as_dict(answer))
    else:
        typer.echo(answer.text)


def _check_usage(
    prompt: str | None, messages: str | None, batch: Path | None, out: Path | None, image: list[str] | None
) -> None:
    if sum(x is not None for x in (prompt, messages, batch)) != 1:
        raise typer.BadParameter("give exactly one of PROMPT, --messages and --batch")
    if (batch is None) != (out is None):
        raise typer.BadParameter("--batch and --out go together")
    if image and prompt is None:
        raise typer.BadParameter("--image goes with a PROMPT; messages hold their own pictures")
