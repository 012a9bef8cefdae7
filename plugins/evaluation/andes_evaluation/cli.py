"""`andes eval`: a benchmark of a model's plugins. `andes batch`: answers to a file of conversations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.cli.loading import Backend, Device, Dtype, Options, Plugins, Request, open_pipeline, requesting


@clean
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, packed file, or owner/name on the Hub.")],
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark that a plugin brings.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first items only.")] = None,
    plugin: Plugins = None,
    option: Options = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Score MODEL on BENCHMARK."""
    from andes_evaluation.evaluate import evaluate as run

    pipeline = open_pipeline(model, None, plugins=plugin, options=option, device=device, dtype=dtype, backend=backend)
    pipeline.pick("benchmarks", benchmark)  # refused before weights are read
    begin = time.perf_counter()
    with stderr().status(f"running {benchmark}"):
        figures = run(pipeline, benchmark, limit)
    seconds = time.perf_counter() - begin
    if as_json:
        facts = {"model": model, "benchmark": benchmark, "limit": limit, "seconds": round(seconds, 3)}
        print_json({**facts, "figures": figures})
        return
    rows = [(name, f"{value:.4f}") for name, value in figures.items()]
    stdout().print(table(("figure", "value"), rows, f"{benchmark}, {seconds:.1f} s"))


@clean
@requesting
def batch(
    request: Request,
    source: Annotated[Path, typer.Argument(help="JSON Lines, one list of messages (or one text) a line.")],
    out: Annotated[Path, typer.Argument(help="JSON Lines of answers; continued if it exists.")],
    together: Annotated[int, typer.Option(min=1, help="Lines that are decoded together.")] = 1,
    as_json: Json = False,
) -> None:
    """Answer every line of SOURCE into OUT. Started again, it goes on where it was stopped, and retries what failed."""
    from andes_evaluation.batch import BatchJob, check_out

    if request.image:
        raise typer.BadParameter("messages hold their own pictures: leave --image out")
    options = request.generation()
    check_out(out)  # before weights are read
    pipeline, folder = request.pipeline(), request.adapter_folder
    job = BatchJob(pipeline, options, source, out, together, request.allow_remote, folder)
    done = job.run(console=None if as_json else stderr())
    if as_json:
        print_json(done)
    if done["failed"]:
        raise typer.Exit(1)
