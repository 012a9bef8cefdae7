"""`andes plugins`: what is installed (nothing is imported), one plugin in detail, and the conformance kit."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import attrs
import typer

from andes_sdk.assembling import discovery
from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.errors import PluginBroken

COLUMNS = ("name", "kind", "distribution", "version", "contract", "status")

app = typer.Typer(help="List, describe and check the installed plugins.")


@app.callback(invoke_without_command=True)
@clean
def installed(context: typer.Context, as_json: Json = False) -> None:
    """List the installed plugins. Nothing is imported; a broken one is a row with its reason."""
    if context.invoked_subcommand is not None:
        if as_json:
            raise typer.BadParameter(f"write: andes plugins {context.invoked_subcommand} --json")
        return
    rows = [{column: getattr(info, column) for column in COLUMNS} for info in discovery.installed()]
    if as_json:
        print_json(rows)
    elif rows:
        stdout().print(table(COLUMNS, [list(row.values()) for row in rows]))
    else:
        stdout().print("no plugins are installed; `pip install 'andes-sdk[andesvl]'` brings a set", markup=False)


def _type_name(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _default(field: attrs.Attribute[Any]) -> Any:
    if field.default is attrs.NOTHING:
        return "required"
    factory = getattr(field.default, "factory", None)
    if factory is None:
        return field.default
    return factory() if not field.default.takes_self else "depends on the other options"  # type: ignore[union-attr]


def describe(name: str) -> dict[str, Any]:
    """Import one plugin -> what its class says about itself.

    Raises:
        PluginNotFound, PluginBroken, ContractMismatch
    """
    cls, distribution, version = discovery.load(name)
    if not attrs.has(cls):
        fix = "decorate it with attrs.frozen(eq=False, kw_only=True)"
        raise PluginBroken("is not an attrs class", who=name, fix=fix)
    options = [
        {"name": f.name, "type": _type_name(f.type), "default": _default(f), "help": f.metadata.get("help", "")}
        for f in attrs.fields(cls)
        if f.init
    ]
    hooks = [
        {"name": hook, "does": (inspect.getdoc(getattr(cls, hook)) or "").partition("\n")[0]}
        for hook in sorted(dir(cls))
        if hook.startswith("andes_") and callable(getattr(cls, hook))
    ]
    return {
        "name": name, "distribution": distribution, "version": version, "contract": getattr(cls, "contract", "?"),
        "doc": inspect.getdoc(cls) or "", "options": options, "hooks": hooks,
    }  # fmt: skip


@app.command("show")
@clean
def show(name: Annotated[str, typer.Argument(help="Name of an installed plugin.")], as_json: Json = False) -> None:
    """Import one plugin and print its documentation, options and hooks."""
    facts = describe(name)
    if as_json:
        print_json({**facts, "options": [{**o, "default": _plain(o["default"])} for o in facts["options"]]})
        return
    console = stdout()
    console.print(f"{name} · {facts['distribution']} {facts['version']} · contract {facts['contract']}", style="bold")
    console.print(facts["doc"], markup=False)
    rows = [(o["name"], o["type"], repr(o["default"]), o["help"]) for o in facts["options"]]
    console.print(table(("option", "type", "default", "help"), rows) if rows else "no options")
    console.print(table(("hook", "does"), [tuple(h.values()) for h in facts["hooks"]]))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | list | dict | None) else str(value)


@app.command("check")
@clean
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Plugins; without any, all that are installed.")] = None,
    as_json: Json = False,
) -> None:
    """Run the conformance kit. Exit code 1 if a check fails."""
    from andes_sdk.testing.command import check_all

    check_all(names or [info.name for info in discovery.installed()], as_json=as_json)
