"""`andes explain`: what a pipeline is made of, before any weight is read."""

from __future__ import annotations

from typing import Annotated

import typer

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json, stdout


@clean
@loading.requesting
def explain(
    opening: loading.Opening,
    plugins: Annotated[
        list[str] | None, typer.Argument(metavar="[PLUGIN]...", help="Plugins, or a model known by name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what each slot and collection holds, who owns it, and what is inactive and why.

    With --model or --config the plugins given are added to those of the model.
    """
    from andes_sdk.pipeline import Pipeline

    if opening.model is None and opening.config is None and plugins:
        chosen = {"device": opening.device, "dtype": opening.dtype, "backend": opening.backend}
        arguments = {k: v for k, v in chosen.items() if v is not None}
        items = loading.plugin_items(plugins, opening.option or ())
        pipeline = Pipeline.from_plugins(items, **arguments)  # type: ignore[arg-type]
    else:
        pipeline = opening.opened(plugins)
    explanation = pipeline.explain()
    if as_json:
        print_json(explanation.to_dict())
    else:
        stdout().print(explanation)
