"""Commands that distributions add to `andes`, this one and others."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.errors import AndesError
from andes_sdk.hookspecs import COMMANDS


class WithAdded(TyperGroup):
    """The core's own commands, then those of other distributions. A broken one is told of, and stops no other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names; nothing is imported."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in extensions(COMMANDS) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now if another distribution brings it."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in extensions(COMMANDS):
            return own
        try:
            return _command(cmd_name, load_extension(COMMANDS, cmd_name))
        except AndesError as error:
            return _broken(cmd_name, error)


def _command(name: str, added: Any) -> Any:
    """A function or a `Typer` of subcommands as what click runs."""
    app = added
    if not isinstance(added, typer.Typer):
        app = typer.Typer()
        app.command(name)(added)
    made = typer.main.get_command(app)
    made.name = name
    return made


def _broken(name: str, error: AndesError) -> Any:
    def told(rest: Annotated[list[str] | None, typer.Argument(hidden=True)] = None) -> None:
        typer.echo(f"error {error}", err=True)
        raise typer.Exit(1)

    app = typer.Typer()
    app.command(name, help=f"broken: {error.what}", context_settings={"ignore_unknown_options": True})(told)
    made = typer.main.get_command(app)
    made.name = name
    return made
