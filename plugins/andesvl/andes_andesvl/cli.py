"""`andes models`: the AndesVL family, counted."""

from __future__ import annotations

from andes_sdk.cli.console import Json, clean, print_json, stdout, table


@clean
def models(as_json: Json = False) -> None:
    """List the AndesVL family: parameters counted on the built modules, and what can be done with each now."""
    from andes_andesvl.catalogue import entries

    found = entries()
    if as_json:
        print_json([entry.to_dict() for entry in found])
        return
    rows = [
        (
            e.member.name,
            "?" if e.parameters is None else f"{e.parameters:,}",
            f"{e.member.published / 1e9:.3f} B",
            e.member.vision,
            e.member.language_model,
            ", ".join(e.supported),
            e.status,
        )
        for e in found
    ]
    heads = ("name", "parameters", "published", "vision", "language model", "supported", "status")
    console = stdout()
    console.print(table(heads, rows))
    console.print('Assemble one: Pipeline.from_plugins(andes_andesvl.catalogue.plugins_of("andesvl-1b"))', markup=False)
