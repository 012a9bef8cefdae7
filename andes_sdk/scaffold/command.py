"""`andes new`: a plugin distribution that works from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout
from andes_sdk.scaffold import KINDS, create


def _kind(value: str) -> str:
    if value not in KINDS:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(KINDS)}")
    return value


@clean
def new(
    name: Annotated[str, typer.Argument(help="Name of the plugin, as it will stand in lists of plugins.")],
    kind: Annotated[str, typer.Option(callback=_kind, metavar="KIND", help=f"One of: {', '.join(KINDS)}.")],
    folder: Annotated[Path, typer.Option(help="Where the distribution's folder is made.")] = Path(),
    as_json: Json = False,
) -> None:
    """Write a plugin distribution of your own: installable, tested, with a small implementation that works."""
    made = create(name, kind, folder)
    if as_json:
        print_json(made.to_dict())
        return
    console = stdout()
    console.print(f"made {made.folder} ({kind}):", markup=False, soft_wrap=True)
    for path in made.files:
        console.print(f"  {path}", markup=False, soft_wrap=True)
    console.print(f"next:\n  pip install -e {made.folder}\n  andes plugins check {name}", markup=False, soft_wrap=True)
