"""`andes curate`: apply data filters to data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table


@clean
def curate(
    recipe: Annotated[Path, typer.Argument(help="A TOML file with data, plugins and filters.")],
    out: Annotated[Path, typer.Option(help="Folder for kept, dropped and baseline samples and the report.")],
    engine: Annotated[str | None, typer.Option(help="local or ray, instead of the recipe's.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, or requests at a time.", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Filter the data of a RECIPE; a run that was stopped computes only what is missing."""
    from andes_curation.curate import curate as run
    from andes_curation.curate import load_curation

    changes: dict[str, Any] = {"engine": engine, "workers": workers}
    loaded = load_curation(recipe, **{key: value for key, value in changes.items() if value is not None})
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), disable=as_json) as bar:
        jobs: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in jobs:
                jobs[name] = bar.add_task(name, total=total)
            bar.update(jobs[name], completed=done)

        report = run(loaded, out, show)
    if as_json:
        print_json({**report, "out": str(out)})
        return
    rows = [(part["filter"], f"{part['count']:,}", part["examples"][0]["reason"]) for part in report["dropped"]]
    console = stdout()
    console.print(
        table(("filter", "dropped", "for example"), rows, f"{report['kept']:,} of {report['samples']:,} kept")
    )
    console.print(f"report: {out / 'report.html'}", markup=False, soft_wrap=True)
