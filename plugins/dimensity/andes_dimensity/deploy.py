"""`andes deploy`: a model as a file for phones, and what can be checked of it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from andes_sdk.cli.console import Json, clean, print_json, stderr, stdout, table
from andes_sdk.config import structure
from andes_sdk.errors import ConfigError
from andes_sdk.files import write_atomically, writing

from .options import Options

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Write a model as a file for phones, and check it.")

Model = Annotated[str, typer.Argument(help="Checkpoint folder, packed or other model file, or owner/name on the Hub.")]
Plugin = Annotated[list[str] | None, typer.Option("--plugin", "-p", help="One more plugin; repeatable.")]
Weights = Annotated[str, typer.Option(help="Matrices without codes of their own: w8 or w4.")]
Head = Annotated[str, typer.Option(help="LM head and embedding: w8 or w4.")]
Vision = Annotated[str, typer.Option(help="Encoder and projector: w8 or w4.")]
Buckets = Annotated[
    str, typer.Option(help="Tokens of a picture's graphs, such as 64,256: pictures of any shape, none stretched.")
]
Rows = Annotated[int, typer.Option(help="Rows of the static cache: prompt and answer together.")]


@contextmanager
def told() -> Iterator[Callable[[str], None]]:
    """A line on stderr that says what is being done."""
    with stderr().status("starting") as status:
        yield status.update


def opened(model: str, plugins: list[str] | None) -> Pipeline:
    """The pipeline of MODEL on torch; a packed file brings its codes along."""
    from andes_sdk.pipeline import Pipeline

    return Pipeline.from_pretrained(model, plugins=list(plugins or ()), backend="torch")


@app.command()
@clean
def setup(
    target: Annotated[str, typer.Argument(help="dimensity")],
    again: Annotated[bool, typer.Option("--again", help="Make it anew, though it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make the environment of a target's tools, once: LiteRT with pinned versions, apart from this one."""
    from . import environment

    if target != "dimensity":
        raise ConfigError(f"no target {target!r}", who="andes deploy setup", fix="dimensity is the one there is")
    with told() as tell:
        facts = environment.setup(tell, again=again)
    if as_json:
        print_json(facts)
    else:
        did = f"made in {facts['seconds']:.0f} s" if facts["made"] else "was there"
        stdout().print(f"{facts['path']}: {did}, {len(facts['packages'])} packages")


@app.command()
@clean
def dimensity(
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="model.litertlm (the bundle) or model.tflite (the graphs).")],
    weights: Weights = "w8",
    head: Head = "w8",
    vision: Vision = "w8",
    rows: Rows = 512,
    prompt: Annotated[int, typer.Option(help="Rows of the prompt graph.")] = 128,
    tree: Annotated[int, typer.Option(help="Rows of a graph that verifies drafts; 0: none.")] = 0,
    picture: Annotated[str, typer.Option(help="Pixels of the picture graph, such as 448x448.")] = "",
    buckets: Buckets = "",
    layout: Annotated[
        str, typer.Option(help="cpu (LiteRT-LM runs it) or npu (cache, masks, tables are inputs).")
    ] = "cpu",
    activations: Annotated[str, typer.Option(help="float, or a16: static int16, for layout npu.")] = "float",
    lora: Annotated[int, typer.Option(help="Rank of adapters that the graphs take as inputs: 0, 16 or 32.")] = 0,
    contract: Annotated[
        Path | None, typer.Option(help="That adapters are trained for (andes qalft contract); its hash goes in.")
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Write MODEL for MediaTek Dimensity 9500, with the very codes and scales that it has.

    Matrices that training or packing left on a grid keep their codes. Others are rounded, one scale per channel. Every
    matrix of the written file is compared with what was handed over, to the bit; a difference is an error.
    """
    from .export import export

    if out.suffix not in (".litertlm", ".tflite"):
        raise ConfigError(f"cannot write {out.name}", who="--out", fix="end the name with .litertlm or .tflite")
    given = {"weights": weights, "head": head, "vision": vision, "rows": rows, "prompt": prompt, "tree": tree,
             "picture": picture, "buckets": buckets, "layout": layout, "activations": activations,
             "lora": lora}  # fmt: skip
    options = structure(Options, given, "andes deploy dimensity")
    with told() as tell:
        tell("opening the model")
        report = export(opened(model, plugin), out, options, tell, contract=contract)
    if as_json:
        print_json(report)
    else:
        show(report)


def show(report: dict[str, Any]) -> None:
    """Print what was written."""
    rows = [
        (name, f"{f['bytes']:,}", f["matrices"], f"{f['exact']:,} of {f['weights']:,}", len(f["ops"]))
        for name, f in report["files"].items()
    ]
    console = stdout()
    console.print(table(("graph", "bytes", "matrices", "weights equal to ours", "signatures"), rows, report["path"]))
    console.print("codes: " + ", ".join(f"{count:,} {source}" for source, count in report["sources"].items()))
    console.print(
        f"{report['bytes']:,} bytes, {report['seconds']:.0f} s, {report['peak_bytes'] / 2**30:.1f} GB at most"
    )
    for line in report["left_out"]:
        console.print(f"not in it, or not checked here: {line}")


@app.command("adapter")
@clean
def write_adapter(
    model: Model,
    bundle: Annotated[Path, typer.Option("--bundle", help="What `andes deploy dimensity --lora` wrote of MODEL.")],
    out: Annotated[Path, typer.Option("--out", help="LiteRT-LM's file of the adapter, such as receipts.tflite.")],
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Folder that peft saved; none: zeros, the base's answers.")
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Write an adapter for a bundle: a file of its own, which LiteRT-LM attaches to a conversation.

    Targets are q, k, v and o of the attention, ranks up to the bundle's. An adapter of another base or contract is
    refused. A bundle with adapters needs one in every conversation: write one without --adapter for the plain base.
    """
    from .adapters import adapter_file

    with told() as tell:
        tell("opening the model")
        facts = adapter_file(opened(model, plugin), adapter, bundle, out, tell)
    if as_json:
        print_json(facts)
    else:
        stdout().print(f"{facts['path']}: {facts['bytes']:,} bytes, rank {facts['rank']}, for base {facts['numbers']}")


@app.command("check")
@clean
def check_file(
    file: Annotated[Path, typer.Argument(help="A bundle, or graphs, that `andes deploy dimensity` wrote.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model that a bundle was written from.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSON Lines with `messages`, pictures as paths: both sides answer them.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Conversations of --data at most.")] = 100,
    adapter: Annotated[list[Path] | None, typer.Option(help="Folder of an adapter to answer with; repeatable.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the report as a page.")] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Compare FILE with its model: each matrix to the bit, each graph, the next token of 100 prompts, conversations.

    LiteRT runs the graphs and LiteRT-LM the conversations; the other side is the reference backend. Each line says
    whether it was checked here. The command fails if one of those that were does not hold. Of a .tflite alone it tells
    which operators MediaTek's plugin takes.
    """
    from .check import check, check_graphs
    from .conversations import read, some
    from .page import checked

    if adapter and file.suffix == ".tflite":
        why = "of a .tflite the operators are told, and nothing is answered"
        raise ConfigError("cannot be checked with graphs alone", who="--adapter", why=why, fix="check the bundle")
    with told() as tell:
        if file.suffix == ".tflite":
            report = check_graphs(file)
        elif model is None:
            raise ConfigError("a bundle is compared with its model", who="--model", fix="name the model")
        else:
            tell("opening the model")
            pipeline = opened(model, plugin)
            with some(pipeline) as own:
                asked = own if data is None else read(data, limit)
                report = check(pipeline, file, asked, tell, adapter or ())
    rows = [
        (line.what, "checked here" if line.here else "not checkable here", _mark(line.fine), line.value)
        for line in report.lines
    ]
    if html is not None:
        with writing(html):
            write_atomically(html, checked(str(file), rows).encode())
    if as_json:
        print_json({"file": str(file), **report.to_dict()})
    else:
        stdout().print(table(("what", "", "", "figure, or why not"), rows, str(file)))
    if not report.fine:
        raise typer.Exit(1)


def _mark(fine: bool | None) -> str:
    return {True: "holds", False: "DOES NOT HOLD", None: ""}[fine]
