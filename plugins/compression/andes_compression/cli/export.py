"""`andes export`: a model as a file of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andes_sdk.assembling import discovery
from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.cli.loading import Plugins, open_pipeline, with_options
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from andes_sdk.types import Exporter

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the exporter; repeatable.")
]


def exporter_named(name: str, given: list[str]) -> Exporter:
    """The exporter of the plugin `name`, or `name-export` where the first one is another kind of plugin.

    Raises:
        ConfigError: neither plugin is installed or brings an exporter, or options that it does not have.
    """
    from andes_sdk.assembling.assembly import assemble

    installed = {info.name for info in discovery.installed()}
    for plugin in (name, f"{name}-export"):
        if plugin in installed and hasattr(discovery.load(plugin)[0], "andes_exporters"):
            items = with_options([plugin], [f"{plugin}.{text}" for text in given])
            found: dict[str, Exporter] = dict(assemble(items, slots_required=False).collections["exporters"])
            return found[name] if name in found else next(iter(found.values()))
    raise ConfigError(f"no exporter {name!r}", who="NAME", fix="see `andes plugins`: exporters have the kind exporters")


@clean
def export(
    name: Annotated[str, typer.Argument(help="The exporter, such as gguf.")],
    model: Annotated[str, typer.Argument(help="As --model of other commands, or a TOML or JSON list of plugins.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    change: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Write MODEL as a file of another runtime, and say what was lost or left out.

    The exporter comes from the plugin NAME, or from NAME-export.
    """
    from andes_sdk.pipeline import Pipeline

    exporter = exporter_named(name, change or [])
    if model.endswith((".toml", ".json")):
        pipeline = open_pipeline(None, Path(model), plugins=plugin)
    else:
        pipeline = Pipeline.from_pretrained(model, plugins=plugin or [], backend="torch")
    report = dict(exporter.export(pipeline, out))
    if as_json:
        print_json(report)
        return
    console = stdout()
    lists = [value for value in report.values() if isinstance(value, list)]
    rows: list[dict[str, Any]] = next((rows for rows in lists if rows and isinstance(rows[0], dict)), [])
    if rows:
        console.print(table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows], out.name))
    for key, value in report.items():
        if value is not rows:
            console.print(f"{key}: {_cell(value)}", markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
