"""`andes ui`: screens of user interfaces with their elements, and tasks about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Render user interfaces as data: screens, elements, tasks."
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@app.command()
@clean
def render(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="Folders of html pages, or generated:N[:SEED].")
    ],
    out: Annotated[Path, typer.Option(help="Folder for screens, rows and the report; a stopped run goes on there.")],
    sizes: Annotated[
        str, typer.Option(help="desktop, mobile, small, or WIDTHxHEIGHT, with m at the end for touch.")
    ] = "desktop,mobile",
    themes: Annotated[str, typer.Option(help="light, dark.")] = "light,dark",
    scales: Annotated[str, typer.Option(help="Pixels of the picture per pixel of the page.")] = "1",
    languages: Annotated[str, typer.Option(help="Of generated pages: en, de, fr, es, ru, el, zh, ja, ar, hi.")] = "en",
    layouts: Annotated[str, typer.Option(help="Of generated pages; all if empty.")] = "",
    pages: Annotated[int, typer.Option(min=1, help="Pages of each generated application.")] = 4,
    views: Annotated[
        int | None, typer.Option(min=1, help="Views of each page, drawn; else all of a folder's, 1 of a generated one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Render the first screens only.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    words: Annotated[str, typer.Option(help="A file with words for generated pages, one a line.")] = "",
    usual: Annotated[float, typer.Option(min=0, max=1, help="How often generated controls say what is usual.")] = 0.5,
    invented: Annotated[float, typer.Option(min=0, max=1, help="How often a generated word is made up.")] = 0.4,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="Share of applications held out.")] = 0.1,
    test_apps: Annotated[str, typer.Option(help="The applications held out, in place of a share.")] = "",
    characters: Annotated[bool, typer.Option("--characters", help="A box for each character, too.")] = False,
    picture_format: Annotated[str, typer.Option("--format", help="Of pictures: png, jpg, webp.")] = "png",
    questions: Annotated[int, typer.Option(min=1, help="Rows of each task per screen, at most.")] = 8,
    jobs: Annotated[int, typer.Option(min=1, help="Browsers at a time.")] = 1,
    as_json: Json = False,
) -> None:
    """Render SOURCEs to screenshots with their elements, and write tasks about them."""
    from andes_andesui.layouts import LAYOUTS
    from andes_andesui.render import render as run
    from andes_andesui.screens import Options

    try:
        factors = tuple(float(part) for part in _names(scales))
    except ValueError:
        raise typer.BadParameter(f"--scales: expected numbers, got {scales!r}") from None
    options = Options(
        sources=tuple(sources), sizes=_names(sizes), themes=_names(themes), scales=factors,
        languages=_names(languages), layouts=_names(layouts) or tuple(LAYOUTS), pages=pages, views=views, limit=limit,
        seed=seed, words=words, usual=usual, invented=invented, test_share=test_share, test_apps=_names(test_apps),
        characters=characters, format=picture_format, questions=questions,
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), disable=as_json) as bar:
        job = bar.add_task("screens", total=None)
        facts = run(options, out, jobs, lambda done, total: bar.update(job, completed=done, total=total))
    if as_json:
        print_json({**facts, "out": str(out)})
        return
    stdout().print(table(("", "count"), [(name, f"{value:,}") for name, value in facts.items()], str(out)))


@app.command()
@clean
def fetch(
    kits: Annotated[list[str] | None, typer.Argument(metavar="KIT…", help="Names of kits; none lists them.")] = None,
    to: Annotated[Path, typer.Option(help="Folder in which each kit gets a folder.")] = Path("kits"),
    as_json: Json = False,
) -> None:
    """Get KITs of others from npm and PyPI, to render their pages. Their licences are written beside them."""
    from andes_andesui.fetch import fetch as run
    from andes_andesui.kits import KITS

    if not kits:
        found = [
            {"name": name, "package": k.package, "version": k.version, "licence": k.licence} for name, k in KITS.items()
        ]
    else:
        with stderr().status(f"fetching {', '.join(kits)}"):
            found = run(kits, to)
    if as_json:
        print_json(found)
        return
    heads = ("name", "package", "version", "licence")
    stdout().print(table(heads, [[row[head] for head in heads] for row in found], str(to) if kits else "kits"))
