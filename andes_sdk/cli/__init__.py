"""`andes`: the command line. Starting it imports neither torch nor any plugin; each command imports what it needs.

Entry points (`andes_sdk.v1.commands`) add the commands of other distributions, and `andes new`. These are imported when
they are called, or when `andes --help` shows what they do.
"""

from __future__ import annotations

from typing import Annotated

import typer

from andes_sdk import CONTRACT, __version__
from andes_sdk.cli import explain, plugins
from andes_sdk.cli.added import WithAdded
from andes_sdk.cli.console import tolerate

app = typer.Typer(
    name="andes", cls=WithAdded,
    help="Assemble, train, compress and run AndesVL-class vision-language models from plugins.", no_args_is_help=True,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(plugins.app, name="plugins")
app.command("explain")(explain.explain)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"andes_sdk {__version__} (contract {'.'.join(map(str, CONTRACT))})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Assemble, train, compress and run AndesVL-class vision-language models from plugins."""


def main() -> None:
    """The entry point `andes`. Exit codes: 0 done, 1 one of our errors, 2 wrong usage."""
    tolerate()
    app()
