"""`andes bpw`: bits per weight of a model, as it is or as it would be packed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.cli.loading import Plugins, family_member
from andes_sdk.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from andes_compression.bpw import Report

Head = Annotated[str | None, typer.Option(help="Of embedding and head. (default: as --format)")]
Vision = Annotated[str, typer.Option(help="Of the matrices of encoder and projector.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATTERN=FORMAT", help="For some tensors; the last match wins.")
]


def patterns(given: list[str] | None) -> dict[str, str]:
    """`pattern=format` -> a recipe's further entries.

    Raises:
        ConfigError: a text that is not `pattern=format`.
    """
    pairs = [text.rpartition("=") for text in given or ()]
    for text, (pattern, _, form) in zip(given or (), pairs, strict=True):
        if not (pattern and form):
            raise ConfigError(
                f"cannot read {text!r}", who="--set", fix="write 'pattern=format', such as '*.v_proj.*=w8'"
            )
    return {pattern: form for pattern, _, form in pairs}


def report_of(
    model: str, form: str | None, head: str | None, vision: str, given: list[str] | None, plugins: list[str]
) -> Report:
    """Bits of an artefact, a checkpoint folder, or a model that is known by name, on shapes alone.

    Raises:
        ConfigError: a model known by name, without a format. CheckpointError: nothing that can be read.
    """
    from andes_packing import Artefact, is_artefact

    from andes_compression import bpw as counting
    from andes_compression.recipe import default_recipe
    from andes_sdk.assembling.assembly import assemble
    from andes_sdk.pipeline import Pipeline

    path = Path(model)
    if is_artefact(path):
        if form is not None:
            raise ConfigError("an artefact has its formats already", who=model, fix="leave out --format")
        own = assemble(plugins, slots_required=False).collections["formats"]
        return counting.of_artefact(Artefact.open(path, formats=own.values()))
    member = None if path.exists() else family_member(model)
    if member is not None and form is None:
        raise ConfigError("a member of the family has no weights to count", who=model, fix="pass --format")
    if member is not None:
        pipeline = Pipeline.from_plugins([*member, *plugins])
    else:
        pipeline = Pipeline.from_pretrained(model, plugins=plugins)
    modules = pipeline.meta_model()
    if form is None:
        if pipeline.weights is None:
            raise ConfigError("has no checkpoint to count", who=model, fix="pass --format")
        return counting.of_checkpoint(pipeline.weights, modules, pipeline.plan)
    recipe = default_recipe(modules, form, head=head, vision=vision) | patterns(given)
    return counting.of_model(modules, pipeline.plan, recipe, formats=pipeline.collection("formats").values())


def show(report: Report, console: Console, title: str) -> None:
    """Print a report as a table."""
    facts = report.to_dict()
    rows = [_cells(r["group"], ", ".join(r["formats"]), r) for r in facts["groups"]]
    rows.append(_cells("language model", "", facts["language_model"]))
    rows.append(_cells("all tensors", "", {**facts, "bytes": {w: _total(facts, w) for w in ("disk", "memory")}}))
    whole = {**facts, "type_bpw": facts["model_bpw"]}
    rows.append(_cells("model", "with header and alignment", whole))
    heads = ("group", "formats", "weights", "BPW on disk", "BPW in memory", "MiB on disk", "MiB in memory")
    console.print(table(heads, rows, title))
    console.print("groups and all tensors: type BPW; model: model BPW, all bytes over all parameters, tied ones once")
    if facts["bytes"]["tokenizer_files"]:
        console.print(f"the file also carries the tokenizer: {facts['bytes']['tokenizer_files'] / 2**20:,.1f} MiB")


def _total(facts: dict[str, list[dict[str, dict[str, int]]]], where: str) -> int:
    return sum(r["bytes"][where] for r in facts["groups"])


def _cells(name: str, formats: str, facts: dict[str, dict[str, float]]) -> tuple[str, ...]:
    bpw, size = facts["type_bpw"], facts["bytes"]
    return (
        name, formats, f"{facts['weights']:,}", f"{bpw['disk']:.3f}", f"{bpw['memory']:.3f}",
        f"{size['disk'] / 2**20:,.2f}", f"{size['memory'] / 2**20:,.2f}",
    )  # fmt: skip


@clean
def bpw(
    model: Annotated[
        str, typer.Argument(help="An artefact, a checkpoint folder, owner/name on the Hub, or a model known by name.")
    ],
    form: Annotated[
        str | None, typer.Option("--format", "-f", help="Count as if packed in this format, such as nm14_w4.")
    ] = None,
    head: Head = None,
    vision: Vision = "f16",
    change: Set = None,
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Count the bits per weight of MODEL: each group of tensors and the whole, on disk and in memory.

    Codes, scales, indices, padding and embeddings are all counted. With --format no weight is read.
    """
    if form is None and (head is not None or vision != "f16" or change):
        raise typer.BadParameter("--head, --vision and --set need --format")
    report = report_of(model, form, head, vision, change, plugin or [])
    if as_json:
        print_json({"model": model, **report.to_dict()})
    else:
        show(report, stdout(), model)
