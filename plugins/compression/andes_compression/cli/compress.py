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

RECIPES = "andes_compression.recipes"
"""Group of entry points: recipes that train a model before they pack it."""
STEPS = 2000
"""Of a recipe, unless told otherwise."""
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="OPTION=VALUE",
        help="For the compressor, or with PLUGIN.OPTION=VALUE for a plugin; repeatable.",
    ),
]


@clean
def compress(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, or owner/name on the Hub.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as model.andes.")],
    compressor: Annotated[str | None, typer.Argument(help="Name of a compressor that a plugin brings.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of COMPRESSOR: train on a grid and pack, such as sub2.")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="For --recipe: files of conversations; repeatable.")] = None,
    steps: Annotated[int | None, typer.Option(min=4, help=f"For --recipe: optimizer steps. (default: {STEPS})")] = None,
    run: Annotated[Path | None, typer.Option(help="For --recipe: folder of states. (default: OUT.run)")] = None,
    option: Option = None,
    form: Annotated[
        str | None,
        typer.Option("--format", "-f", help="Of the language model. (default: the one that holds the codes; else f16)"),
    ] = None,
    head: Head = None,
    vision: Vision = "f16",
    change: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Run COMPRESSOR on MODEL and pack exactly the codes, scales and ranges that it gave.

    Matrices without codes are rounded to nearest in the format of --format. With --recipe the model is trained first;
    a run that was stopped goes on with the same command.
    """
    if (compressor is None) == (recipe is None):
        raise typer.BadParameter("give COMPRESSOR or --recipe, one of them")
    if recipe is not None:
        if form or head or change or plugin or vision != "f16":
            raise typer.BadParameter("a recipe has its formats: leave --format, --head, --vision, --set and -p out")
        folder = run or out.with_name(f"{out.name}.run")
        _train(recipe, model, data or [], out, folder, steps or STEPS, option or [], as_json)
        return
    if given := [name for name, value in (("--data", data), ("--steps", steps), ("--run", run)) if value is not None]:
        raise typer.BadParameter(
            f"{', '.join(given)}: for --recipe alone; give a compressor options by -o, as -o data=FILE"
        )
    from andes_compression import bpw as counting
    from andes_compression.compress import compress as compressed
    from andes_compression.compress import recipe_for, write

    given_options = option or []
    of_plugins = [one for one in given_options if "." in one.partition("=")[0]]
    pipeline = open_pipeline(model, None, plugins=plugin, options=of_plugins)
    assert compressor is not None
    pipeline.pick("compressors", compressor)  # refused before weights are read
    own = option_values([one for one in given_options if one not in of_plugins])
    begin = time.perf_counter()
    with Progress(console=stderr(), disable=as_json, transient=True) as bar:
        first = bar.add_task("compressing", total=None)
        made = compressed(pipeline, compressor, **own)
        bar.remove_task(first)
        task = bar.add_task("packing", total=pipeline.model.parameter_count())
        formats = recipe_for(pipeline, made, form, head=head, vision=vision) | patterns(change)
        artefact = write(
            pipeline, made, out, formats,
            progress=lambda name, count: bar.update(task, advance=count, description=name),
        )  # fmt: skip
    _tell(artefact, dict(made.report), counting.of_artefact(artefact), time.perf_counter() - begin, as_json)


def _train(
    name: str, model: str, data: list[Path], out: Path, run: Path, steps: int, options: list[str], as_json: bool
) -> None:
    """By a recipe of an entry point: `(model, data, out, *, run, steps, options, console) -> (artefact, report)`."""
    from andes_compression import bpw as counting
    from andes_sdk.assembling.discovery import extensions, load_extension
    from andes_sdk.config import suggestion
    from andes_sdk.errors import AndesError, ConfigError

    known = extensions(RECIPES)
    if name not in known:
        fix = suggestion(name, known) if known else "install the plugin that brings it: pip install andes-qat"
        raise ConfigError(f"no recipe {name!r}", who="--recipe", fix=fix)
    begin = time.perf_counter()
    make, console = load_extension(RECIPES, name), None if as_json else stdout()
    try:
        artefact, said = make(model, data, out, run=run, steps=steps, options=option_values(options), console=console)
    except AndesError as error:
        if signal := getattr(error, "signal", 0):
            stderr().print(f"stopped; the same command goes on from {run}", markup=False, soft_wrap=True)
            raise typer.Exit(128 + signal) from None
        raise
    _tell(artefact, dict(said), counting.of_artefact(artefact), time.perf_counter() - begin, as_json)


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
