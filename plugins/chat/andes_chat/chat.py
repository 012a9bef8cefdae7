"""`andes chat`: one question, or a conversation in the terminal."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from attrs import define, field

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json, report, stderr
from andes_sdk.errors import AndesError, AssemblyError, InputError

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.runtime.generation import Answer, GenerationOptions

HELP = """/image FILE  show a picture with the next question
/reset       forget the conversation
/quit        leave (so does Ctrl-D)
/help        this text"""


@define
class Conversation:
    """A conversation in progress.

    Attributes:
        messages: what was said, OpenAI-style; a question that failed leaves no trace in it.
        images: pictures for the next question.
        stats: print speed after each answer.
    """

    pipeline: Pipeline
    options: GenerationOptions
    allow_remote: bool = False
    stats: bool = False
    images: list[str] = field(factory=list)
    messages: list[dict[str, Any]] = field(factory=list)

    def ask(self, question: str) -> str:
        """Stream the answer to stdout -> the answer. Ctrl-C ends it early; what came so far is kept.

        Raises:
            AndesError: the question cannot be answered; the conversation is as before.
        """
        from andes_sdk.inputs.messages import user_message

        asked = [*self.messages, user_message(question, self.images)]
        pieces: list[str] = []
        stream = self.pipeline.stream(asked, self.options, allow_remote=self.allow_remote)
        whole: Answer | None = None
        try:
            while True:
                pieces.append(next(stream))
                typer.echo(pieces[-1], nl=False)
                sys.stdout.flush()
        except StopIteration as end:
            whole = end.value
        except KeyboardInterrupt:
            typer.echo(" …", nl=False)
        typer.echo()
        answer = "".join(pieces)
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        self.images = []
        if self.stats and whole is not None:
            speed = f"{whole.tokens_per_second:.1f} tokens/s" if whole.tokens_per_second else "one token"
            first = f"first token {whole.time_to_first_token * 1e3:.0f} ms"
            stderr().print(f"[dim]{first} · {len(whole.tokens)} tokens · {speed}[/]")
        return answer

    def command(self, line: str) -> bool:
        """Obey a line that starts with a slash -> whether to go on."""
        name, _, argument = line.partition(" ")
        if name in ("/quit", "/exit"):
            return False
        if name == "/reset":
            self.messages, self.images = [], []
            stderr().print("[dim]forgotten[/]")
        elif name == "/image" and argument.strip():
            try:
                self.images.append(checked_picture(argument, allow_remote=self.allow_remote))
            except AndesError as error:
                report(error)
                return True
            stderr().print(f"{len(self.images)} picture(s) for the next question", style="dim", markup=False)
        else:
            stderr().print(HELP, style="dim", markup=False)
        return True


def checked_picture(typed: str, *, allow_remote: bool = False) -> str:
    """A path or an address as typed, pasted or dragged into a terminal, of a picture that can be read.

    Quotes around it and backslashes before spaces go, `~` is the home folder.

    Raises:
        InputError: there is no such picture.
    """
    from andes_sdk.inputs.images import load_image

    text = typed.strip()
    if not Path(text).exists() and "://" not in text:
        with contextlib.suppress(ValueError):  # a quote that stands alone is part of a name
            text = " ".join(shlex.split(text)) or text
    load_image(text, allow_remote=allow_remote)
    return text


def converse(conversation: Conversation, read: Callable[[], str]) -> None:
    """Ask what `read` gives until it raises EOFError or says /quit; an error does not end the conversation."""
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo()
            continue
        except InputError as error:
            report(error)
            continue
        if not line:
            continue
        if line.startswith("/"):
            if not conversation.command(line):
                return
            continue
        try:
            conversation.ask(line)
        except (AndesError, AssemblyError) as error:
            report(error)
            # a picture that cannot be read must not spoil the next question too
            conversation.images = []


def _prompt() -> str:
    try:
        if sys.stdin.isatty():
            return input("> ")
        line = sys.stdin.buffer.readline()  # bytes, so that a line that cannot be decoded costs no other one
        if not line:
            raise EOFError
        return line.decode(sys.stdin.encoding or "utf-8")
    except UnicodeDecodeError as error:
        raise InputError("a line is no text", who="stdin", why=str(error), fix="write UTF-8") from None
    except EOFError:
        if sys.stdin.isatty():
            typer.echo()
        raise


@clean
@loading.requesting
def chat(
    request: loading.Request,
    question: Annotated[str | None, typer.Argument(help="Asked once; without it a conversation starts.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print time to first token and speed on stderr.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a model about pictures: one QUESTION, or a conversation when none is given.

    In a conversation: /image FILE, /reset, /help, /quit. The answer appears as it is produced.
    """
    if as_json and question is None:
        raise typer.BadParameter("--json needs a QUESTION")
    if as_json and stats:
        raise typer.BadParameter("--json holds the times already: leave --stats out")
    if request.logprobs is not None and not as_json:
        raise typer.BadParameter("--logprobs are shown with --json only")
    options, pipeline = request.generation(), request.pipeline()
    if as_json:
        from andes_sdk.inputs.messages import user_message

        asked = [user_message(str(question), request.image or [])]
        print_json(pipeline.generate(asked, options, allow_remote=request.allow_remote).to_dict())
        return
    conversation = Conversation(pipeline, options, request.allow_remote, stats, list(request.image or []))
    if question is not None:
        conversation.ask(question)
        return
    if sys.stdin.isatty():
        stderr().print(HELP, style="dim", markup=False)
    converse(conversation, _prompt)
