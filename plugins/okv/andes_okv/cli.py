"""`andes okv`: fit a learned scorer, and say what its file holds. `andes context`: what a session kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.cli.loading import Options, Plugins, Request, requesting

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Scorers that a cache policy learns.")


@app.command()
@clean
def fit(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, packed file, or owner/name on the Hub.")],
    data: Annotated[list[Path], typer.Option(help="JSON Lines of messages or texts, or a text file; repeatable.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as scorer.safetensors.")],
    limit: Annotated[int | None, typer.Option(min=2, help="Read the first samples only.")] = None,
    rows: Annotated[int, typer.Option(min=16, help="Longest sample; longer texts are cut, pictures skipped.")] = 2048,
    plugin: Plugins = None,
    option: Options = None,
    backend: Annotated[str | None, typer.Option(help="What runs the model; torch is built in.")] = None,
    as_json: Json = False,
) -> None:
    """Fit a scorer to MODEL: what it keeps of its own contexts when it has to repeat them, learned from one pass."""
    from andes_okv.fitting import fit as run
    from andes_okv.samples import count, samples
    from andes_sdk.cli.loading import open_pipeline
    from andes_sdk.files import writing

    total = count(data, limit)
    plugins, options = [*(plugin or ()), "okv"], [*(option or ()), "okv.scorer=kvzip+"]
    pipeline = open_pipeline(model, None, plugins=plugins, options=options, backend=backend)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), disable=as_json) as bar:
        job = bar.add_task("samples", total=total)
        found = samples(pipeline, data, limit)
        weights, report = run(pipeline, found, rows=rows, progress=lambda done: bar.update(job, completed=done))
    with writing(out):
        weights.write(out)
    facts = {**report.to_dict(), "out": str(out), "model": weights.model}
    if as_json:
        print_json(facts)
        return
    stdout().print(table(("", "value"), [(k, _shown(v)) for k, v in facts.items()], "learned scorer"))


@app.command()
@clean
def show(
    weights: Annotated[Path, typer.Argument(help="A file that `andes okv fit` wrote.")], as_json: Json = False
) -> None:
    """Say which model a scorer belongs to, and how it was made."""
    from andes_okv.weights import Weights

    read = Weights.read(weights)
    shape = tuple(read.maps[0][0].shape) if read.maps else ()
    facts = {"model": read.model, "layers": len(read.maps), "kv_heads_and_width": list(shape), **read.facts}
    if as_json:
        print_json(facts)
        return
    stdout().print(table(("", "value"), [(k, _shown(v)) for k, v in facts.items()], str(weights)))


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@clean
@requesting
def context(
    request: Request,
    text: Annotated[str, typer.Argument(help="The question; or @FILE, a text to read.")],
    out: Annotated[Path, typer.Option(help="The HTML page to write.")] = Path("context.html"),
    tokens: Annotated[int, typer.Option(min=0, help="Tokens to answer before looking.")] = 0,
    as_json: Json = False,
) -> None:
    """Show what a session keeps of its context and why: a heat map of layers and heads, pictures, text."""
    from andes_okv.context import look, page
    from andes_okv.samples import text_of
    from andes_sdk.files import write_atomically, writing
    from andes_sdk.inputs.images import load_image
    from andes_sdk.inputs.messages import user_message

    asked = text_of(text)
    pipeline, pictures = request.pipeline(), list(request.image or ())
    inputs = pipeline.prepare([user_message(asked, pictures)], think=request.think, allow_remote=request.allow_remote)
    found = look(pipeline, inputs, tokens)
    shown = [load_image(one, allow_remote=request.allow_remote) for one in pictures]
    with writing(out):
        write_atomically(out, page(found, pipeline, shown).encode(errors="replace"))
    facts = {**found.to_dict(), "out": str(out)}
    if as_json:
        print_json(facts)
        return
    stdout().print(table(("", "value"), [(k, _shown(v)) for k, v in facts.items() if k != "layers"], "context"))
