"""`andes compress`: a compressor of a model's plugins, and one file with the codes that it gave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from andes_compression.cli.bpw import Head, Set, Vision, patterns, show
from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.cli.loading import Plugins, open_pipeline, option_values

if TYPE_CHECKING:
    from andes_packing import Artefact

    from andes_compression.bpw import Report

Option = Annotated[
    list[str] | None, typer.Option("--option", "-o", metavar="OPTION=VALUE", help="For the compressor; repeatable.")
]


@clean
def compress(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or owner/name on the Hub.")],
    compressor: Annotated[str, typer.Argument(help="Name of a compressor that a plugin brings.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as model.andes.")],
    option: Option = None,
    form: Annotated[
        str | None,
        typer.Option("--format", "-f", help="Of the language model. [default: the one that holds the codes; else f16]"),
    ] = None,
    head: Head = None,
    vision: Vision = "f16",
    change: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run COMPRESSOR on MODEL and pack exactly the codes, scales and ranges that it gave.

    Matrices without codes are rounded to nearest in the format of --format.
    """
    from andes_compression import bpw as counting
    from andes_compression.compress import compress as run
    from andes_compression.compress import recipe_for, write

    pipeline = open_pipeline(model, None, plugins=plugin)
    pipeline.pick("compressors", compressor)  # refused before weights are read
    begin = time.perf_counter()
    with Progress(console=stderr(), disable=as_json, transient=True) as bar:
        first = bar.add_task("compressing", total=None)
        made = run(pipeline, compressor, **option_values(option or []))
        bar.remove_task(first)
        task = bar.add_task("packing", total=pipeline.model.parameter_count())
        recipe = recipe_for(pipeline, made, form, head=head, vision=vision) | patterns(change)
        artefact = write(
            pipeline, made, out, recipe,
            progress=lambda name, count: bar.update(task, advance=count, description=name),
        )  # fmt: skip
    _tell(artefact, dict(made.report), counting.of_artefact(artefact), time.perf_counter() - begin, as_json)


def _tell(artefact: Artefact, said: dict[str, Any], report: Report, seconds: float, as_json: bool) -> None:
    facts = {"artefact": str(artefact.path), "numbers": artefact.numbers, "ranges": len(artefact.ranges)}
    if as_json:
        print_json({**facts, "seconds": round(seconds, 3), "report": said, **report.to_dict()})
        return
    console = stdout()
    console.print(table(("fact", "value"), list(said.items()), "the compressor says"))
    show(report, console, artefact.path.name)
    console.print(f"numbers {artefact.numbers}, {len(artefact.ranges)} input ranges")
    console.print(f"compressed and packed in {seconds:.1f} s: {artefact.path}", markup=False, soft_wrap=True)
