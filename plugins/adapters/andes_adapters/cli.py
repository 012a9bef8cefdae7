"""`andes adapters`: what becomes of the adapters that peft, or `andes train`, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Adapters that peft, or `andes train`, saved.")


@app.callback()
def adapters() -> None:
    """Adapters that peft, or `andes train`, saved."""


@clean
def merge(
    model: Annotated[str, typer.Argument(help="The base: what `--model` takes.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    out: Annotated[Path, typer.Argument(help="Folder of the checkpoint to write.")],
    any_base: Annotated[
        bool, typer.Option("--any-base", help="Merge into other weights than it was trained on, too.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="Of the written weights; the base's if not given.")] = None,
    as_json: Json = False,
) -> None:
    """Add ADAPTER to the weights of MODEL and write the sum to OUT. The sum is taken in float32."""
    from andes_adapters.merging import merge_adapter
    from andes_sdk.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(model)
    before = pipeline.plan.dtype
    pipeline.retype("float32")
    known = merge_adapter(pipeline.model, adapter, any_base=any_base)
    written = pipeline.save_pretrained(out, dtype=dtype or before)
    if as_json:
        print_json({"model": str(written), "base_checked": known and not any_base})
        return
    if not known:
        stdout().print("the adapter does not say what it was trained on; shapes fit", markup=False, soft_wrap=True)
    stdout().print(f"merged model: {written}", markup=False, soft_wrap=True)


app.command("merge")(merge)
