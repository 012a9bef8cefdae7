"""`andes pack`: a checkpoint into one file of low-bit weights."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from andes_compression.cli.bpw import Head, Set, Vision, patterns, show
from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout
from andes_sdk.cli.loading import Plugins


@clean
def pack(
    model: Annotated[str, typer.Option("--model", "-m", help="Checkpoint folder, or owner/name on the Hub.")],
    form: Annotated[str, typer.Option("--format", "-f", help="Of the language model, such as w4_g32 or nm14_w4.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as model.andes.")],
    head: Head = None,
    vision: Vision = "f16",
    change: Set = None,
    plugin: Plugins = None,
    search: Annotated[bool, typer.Option(help="Choose scales by squared error.")] = True,
    as_json: Json = False,
) -> None:
    """Pack a checkpoint: round to nearest with searched scales; N:M formats keep the largest magnitudes.

    This needs no data, and is the plain baseline: training-based compressors write the same formats.
    """
    from andes_compression import bpw as counting
    from andes_compression.pack import pack_model
    from andes_compression.recipe import default_recipe
    from andes_sdk.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, plugins=plugin or ())
    recipe = default_recipe(pipeline.meta_model(), form, head=head, vision=vision) | patterns(change)
    formats = tuple(pipeline.collection("formats").values())
    # refuses a recipe that does not fit before weights are read
    counting.of_model(pipeline.meta_model(), pipeline.plan, recipe, formats=formats)
    begin = time.perf_counter()
    with Progress(console=stderr(), disable=as_json, transient=True) as bar:
        task = bar.add_task("packing", total=pipeline.model.parameter_count())
        artefact = pack_model(
            pipeline.model, recipe, out, plan=pipeline.plan, search=search,
            formats=formats,
            progress=lambda name, count: bar.update(task, advance=count, description=name),
        )  # fmt: skip
    seconds, report = time.perf_counter() - begin, counting.of_artefact(artefact)
    if as_json:
        facts = {"artefact": str(artefact.path), "digest": artefact.digest, "seconds": round(seconds, 3)}
        print_json({**facts, "file_bytes": artefact.path.stat().st_size, **report.to_dict()})
        return
    console = stdout()
    show(report, console, artefact.path.name)
    console.print(f"packed in {seconds:.1f} s: {artefact.path}", markup=False, soft_wrap=True)
