"""`andes explain`: what a pipeline is made of, before any weight is read."""

from __future__ import annotations

from typing import Annotated

import typer

from andes_sdk.cli import loading
from andes_sdk.cli.console import Json, clean, print_json, stdout


@clean
def explain(
    plugins: Annotated[
        list[str] | None, typer.Argument(metavar="[PLUGIN]...", help="Plugins, or a model known by name.")
    ] = None,
    model: loading.Model = None,
    config: loading.Config = None,
    option: loading.Options = None,
    device: loading.Device = None,
    dtype: loading.Dtype = None,
    backend: loading.Backend = None,
    as_json: Json = False,
) -> None:
    """Say what each slot and collection holds, who owns it, and what is inactive and why.

    With --model or --config the plugins given are added to those of the model.
    """
    from andes_sdk.pipeline import Pipeline

    if model is None and config is None and plugins:
        chosen = {"device": device, "dtype": dtype, "backend": backend}
        arguments = {k: v for k, v in chosen.items() if v is not None}
        pipeline = Pipeline.from_plugins(loading.plugin_items(plugins, option or ()), **arguments)  # type: ignore[arg-type]
    else:
        pipeline = loading.open_pipeline(
            model, config, plugins=plugins, options=option, device=device, dtype=dtype, backend=backend
        )
    explanation = pipeline.explain()
    if as_json:
        print_json(explanation.to_dict())
    else:
        stdout().print(explanation)
