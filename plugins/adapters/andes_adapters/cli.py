"""`andes adapters`: what becomes of the adapters that peft, or `andes train`, saved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from attrs import asdict

from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from andes_adapters.registry import Entry

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


Base = Annotated[str, typer.Argument(help="A packed file, or a checkpoint folder.")]


@app.command("list")
@clean
def list_(base: Base, as_json: Json = False) -> None:
    """The adapters beside BASE. One whose file is missing or damaged says so in its row."""
    from andes_adapters.registry import Registry

    registry = Registry.beside(base)
    entries = registry.entries()
    memory: dict[str, dict[str, int]] = {}
    failed: dict[str, str] = {}
    for name in entries:
        try:
            memory[name] = registry.memory(name)
        except CheckpointError as error:
            failed[name] = f"{error.what}: {error.why}"
    if as_json:
        facts = {
            n: {**asdict(e), "stored": _stored(e), "memory": memory.get(n), "error": failed.get(n)}
            for n, e in entries.items()
        }
        print_json({"folder": str(registry.folder), "adapters": facts})
        return
    if not entries:
        stdout().print(f"no adapters: {registry.folder}", markup=False, soft_wrap=True)
        return
    kinds = ("float32", "float16", "int8")
    rows = [
        (n, str(e.rank), _stored(e), f"{e.nbytes:,}",
         *((failed[n], "", "") if n in failed else (f"{memory[n][k]:,}" if k in memory[n] else "" for k in kinds)),
         e.contract[:12] or "none")
        for n, e in entries.items()
    ]  # fmt: skip
    titles = ("adapter", "rank", "stored", "file", *(f"in memory: {kind}" for kind in kinds), "contract")
    stdout().print(table(titles, rows, f"{registry.folder}, bytes"))


def _stored(entry: Entry) -> str:
    return "int8" if entry.int8 else "floats"


@app.command()
@clean
def add(
    base: Base,
    name: Annotated[str, typer.Argument(help="What requests call it.")],
    folder: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    as_json: Json = False,
) -> None:
    """Copy the adapter in FOLDER beside BASE, if it belongs to it. BASE is only read."""
    from andes_adapters.registry import Registry
    from andes_sdk.pipeline import Pipeline

    registry = Registry.beside(base)
    entry = registry.add(name, folder, Pipeline.from_pretrained(base, backend="torch"))
    if as_json:
        print_json({"name": name, "folder": str(registry.folder / name), **asdict(entry)})
        return
    told = "" if entry.base_checked else "; it does not say what it was trained on, shapes fit"
    stdout().print(f"added {name!r}, rank {entry.rank}{told}", markup=False, soft_wrap=True)


@app.command()
@clean
def remove(base: Base, name: Annotated[str, typer.Argument(help="The adapter's name.")], as_json: Json = False) -> None:
    """Forget the adapter NAME of BASE, and delete its files."""
    from andes_adapters.registry import Registry

    Registry.beside(base).remove(name)
    if as_json:
        print_json({"removed": name})
    else:
        stdout().print(f"removed {name!r}", markup=False, soft_wrap=True)


@app.command()
@clean
def int8(
    base: Base,
    out: Annotated[Path, typer.Argument(help="Folder to write, such as OUT/BASE.adapters beside a copy of BASE.")],
    as_json: Json = False,
) -> None:
    """Write all adapters of BASE once more, as int8 with the widest scales of all. Those in floats stay as they are."""
    from andes_adapters.int8 import write_int8
    from andes_adapters.registry import Registry
    from andes_sdk.pipeline import Pipeline

    registry = Registry.beside(base)
    pipeline = Pipeline.from_pretrained(base, backend="torch")
    made = write_int8(registry, out, pipeline.meta_model().language_model)
    before, after = (sum(e.nbytes for e in one.entries().values()) for one in (registry, made))
    if as_json:
        print_json({"folder": str(made.folder), "adapters": list(made.entries()), "nbytes": after, "before": before})
        return
    count = len(made.entries())
    told = f"{count} adapters in int8, {after:,} bytes, before {before:,}: {made.folder}"
    stdout().print(told, markup=False, soft_wrap=True)


@app.command()
@clean
def check(
    base: Base,
    name: Annotated[list[str] | None, typer.Argument(help="Adapters; all if none is named.")] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the model.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="As int8, with the widest ranges of all.")] = False,
    as_json: Json = False,
) -> None:
    """Load adapters of BASE, all of them beside one another: their files, their base, and that logits change."""
    from andes_adapters.loading import load
    from andes_adapters.registry import Registry
    from andes_sdk.cli.loading import open_pipeline

    registry = Registry.beside(base)
    names = name or list(registry.entries())
    if not names:
        raise ConfigError("there are no adapters", who=str(registry.folder), fix="add one: andes adapters add")
    pipeline = open_pipeline(base, None, backend=backend)
    found = [load(registry, pipeline, one, int8=int8) for one in names]
    if as_json:
        print_json({"adapters": [asdict(one) for one in found], "nbytes": sum(one.nbytes for one in found)})
        return
    rows = [(f.name, f"{f.nbytes:,}", f"{f.load_ms:.1f} ms", f"{f.switch_ms:.4f} ms", f"{f.change:.3g}") for f in found]
    stdout().print(table(("adapter", "bytes", "loading", "switching", "largest change of a logit"), rows))


app.command("merge")(merge)
