"""Commands that distributions add to `andes`, this one and others."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from andes_sdk.assembling.discovery import extensions, load_extension
from andes_sdk.errors import AndesError, PluginNotFound
from andes_sdk.hookspecs import COMMANDS

OURS = {
    "andes-adapters": ("adapters",), "andes-andesui": ("ui",), "andes-chat": ("chat", "generate"),
    "andes-compression": ("bpw", "compress", "export", "pack"), "andes-curation": ("curate",),
    "andes-dimensity": ("deploy", "lint"), "andes-evaluation": ("batch", "eval"), "andes-numba": ("warmup",),
    "andes-okv": ("context", "okv"), "andes-qalft": ("qalft",), "andes-serve": ("mcp", "serve"),
    "andes-speculative": ("draft",), "andes-training": ("data", "report", "train"),
}  # fmt: skip
"""Distributions of ours, and the commands that they bring: for those who call one that is not installed."""


class WithAdded(TyperGroup):
    """The commands of all distributions in one order. A broken one is told of, and stops no other."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names; nothing is imported."""
        return sorted({*super().list_commands(ctx), *extensions(COMMANDS)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now if an entry point names it."""
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        if cmd_name in extensions(COMMANDS):
            try:
                return _command(cmd_name, load_extension(COMMANDS, cmd_name))
            except AndesError as error:
                return _broken(cmd_name, error)
        for distribution, names in OURS.items():
            if cmd_name in names:
                what = f"{distribution}, which brings this command, is not installed"
                return _broken(cmd_name, PluginNotFound(what, who=cmd_name, fix=f"pip install {distribution}"))
        return None


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
