"""`andes qalft`: the contract of a packed base, and adapters that are trained for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Adapters on a frozen quantised base.")


@app.command()
@clean
def contract(
    model: Annotated[str, typer.Argument(help="The packed base, such as model.andes.")],
    out: Annotated[Path, typer.Option(help="The file to write, such as contract.json.")],
    rank: Annotated[int, typer.Option(min=1, help="Of every adapter.")] = 16,
    as_json: Json = False,
) -> None:
    """Write the contract of MODEL: hashes of codes, scales, ranges, tokenizer and template. It is never changed."""
    from andes_adapters.contract import contract_of
    from andes_packing import Artefact

    from andes_sdk.errors import ConfigError
    from andes_sdk.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model, backend="torch")
    if pipeline.artefact is None:
        fix = "pack it first: `andes compress`, or `andes pack`"
        raise ConfigError("is no packed file, so it has no codes to agree on", who=model, fix=fix)
    Artefact.open(pipeline.artefact.path, verify=True)  # what is damaged is not what anybody agrees on
    made = contract_of(pipeline.artefact, pipeline.model.tokenizer, rank)
    new = made.write(out)
    if as_json:
        print_json({"contract": str(out), "new": new, "ranges": len(made.ranges), **made.mark})
        return
    stdout().print(f"contract {made.hash}, rank {rank}, {len(made.ranges)} ranges", markup=False, soft_wrap=True)
    stdout().print(f"{'written' if new else 'already there'}: {out}", markup=False, soft_wrap=True)


@app.command()
@clean
def train(
    model: Annotated[str, typer.Argument(help="The packed base; it is only read.")],
    contract: Annotated[Path, typer.Option(help="The base's contract.")],
    data: Annotated[list[Path], typer.Option(help="Files of conversations; repeatable.")],
    name: Annotated[str, typer.Option(help="Of the adapter.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    epochs: Annotated[int, typer.Option(min=1, help="How often the data is gone through.")] = 10,
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps instead; 0: epochs count.")] = 0,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 3e-4,
    recovery: Annotated[Path | None, typer.Option(help="An adapter of this contract to start from.")] = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Of one pack.")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the order of data and the first A.")] = 0,
    as_json: Json = False,
) -> None:
    """Train an adapter for MODEL as CONTRACT says. The same command goes on with a run that was stopped."""
    from andes_training.progress import Progress
    from andes_training.stopping import Stopped, Stopping

    from andes_qalft.training import train_adapter

    with Progress(out, None if as_json else stdout(), [10]) as progress, Stopping() as stopping:
        try:
            folder = train_adapter(
                model, contract, data, out, name=name, epochs=epochs, steps=steps, max_tokens=max_tokens, seed=seed,
                progress=progress, stopping=stopping, rate=rate, recovery="" if recovery is None else str(recovery),
            )  # fmt: skip
        except Stopped as stopped:
            if as_json:
                print_json({"stopped": stopped.what, "again": "the same command"})
            raise typer.Exit(128 + stopped.signal) from None
    if as_json:
        print_json({"adapter": str(folder), "contract": str(contract)})
        return
    stdout().print(f"adapter: {folder}", markup=False, soft_wrap=True)
