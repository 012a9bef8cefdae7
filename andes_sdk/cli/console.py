"""What commands print: results on stdout (only JSON with --json), errors on stderr without a traceback."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from andes_sdk.errors import AndesError, AssemblyError

P = ParamSpec("P")
R = TypeVar("R")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


def stdout() -> Console:
    """A console on the stdout of this moment."""
    if sys.stdout.isatty():
        return Console(highlight=False)
    # rich takes a pipe, and a terminal called "dumb" whatever COLUMNS says, for 80 columns: too few for our tables
    columns = os.environ.get("COLUMNS", "")
    return Console(highlight=False, width=int(columns) if columns.isdigit() else 160, height=40)


def stderr() -> Console:
    """A console on the stderr of this moment."""
    return Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """Plain data as indented JSON on stdout; characters stay readable where the terminal's encoding has them all."""
    unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    typer.echo(json.dumps(data, indent=2, ensure_ascii=not unicode))


def tolerate() -> None:
    """From now on a character that the terminal's encoding lacks is printed as "?", and stops nothing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> Table:
    """A table of texts; nothing in a cell is taken as markup."""
    made = Table(title=title or None, title_justify="left")
    for head in heads:
        made.add_column(head, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def clean(command: Callable[P, R]) -> Callable[P, R]:
    """Print our errors instead of a traceback and exit with 1; as JSON on stderr where the command has --json."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (AndesError, AssemblyError) as error:
            report(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(1) from None

    return wrapped


def report(error: AndesError | AssemblyError, *, as_json: bool = False) -> None:
    """Print an error, or every error of a group, on stderr."""
    errors = errors_of(error)
    if as_json:
        typer.echo(json.dumps({"errors": [e.to_dict() for e in errors]}, indent=2, ensure_ascii=False), err=True)
        return
    console = stderr()
    for one in errors:
        console.print(f"[bold red]error[/] {escape(str(one))}", soft_wrap=True)


def errors_of(error: AndesError | AssemblyError) -> Sequence[AndesError]:
    """The errors of a group, or the one."""
    return error.problems if isinstance(error, AssemblyError) else [error]
