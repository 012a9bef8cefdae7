"""`andes lint npu`: findings and costs of a model, before anything is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer

from andes_sdk.cli.console import Json, clean, print_json, stdout, table
from andes_sdk.config import structure
from andes_sdk.files import write_atomically, writing

from .buckets import examples
from .cost import ASSUMED, PHONE, REPORTED, Choice, Machine, Shape, cost, picture_bytes, picture_macs, what_if
from .deploy import Buckets, Head, Model, Plugin, Rows, Vision, Weights, opened, told
from .energy import DRAM, MAC, SRAM, Picojoules
from .options import Options

if TYPE_CHECKING:
    from .export import Lowered

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Find what of a model will not run well on a target."
)


@app.callback()
def group() -> None:
    """Find what of a model will not run well on a target."""


@app.command()
@clean
def npu(
    model: Model,
    weights: Weights = "w8",
    head: Head = "w8",
    vision: Vision = "w8",
    rows: Rows = 512,
    picture: Annotated[str, typer.Option(help="Pixels of the picture graph, such as 448x448.")] = "",
    buckets: Buckets = "",
    pj_dram: Annotated[float, typer.Option(help="Picojoules of a bit between memory and chip.")] = DRAM.value,
    pj_sram: Annotated[float, typer.Option(help="Picojoules of a bit to or from a buffer of the chip.")] = SRAM.value,
    pj_mac: Annotated[float, typer.Option(help="Picojoules of a product of two codes and its sum.")] = MAC.value,
    html: Annotated[Path | None, typer.Option(help="Also write a page of all of it.")] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """Find what of MODEL the NPU of Dimensity 9500 cannot run, or not well, and what a token would cost there.

    Nothing is exported, and LiteRT is not needed. Errors end the command with 1; warnings and notes do not.
    """
    from .drawing import columns
    from .lint import errors_of, lint
    from .page import page

    given = {"weights": weights, "head": head, "vision": vision, "rows": rows, "picture": picture,
             "buckets": buckets}  # fmt: skip
    options = structure(Options, given, "andes lint npu")
    energy = Picojoules(dram=pj_dram, sram=pj_sram, mac=pj_mac)
    with told() as tell:
        tell("reading the model")
        pipeline = opened(model, plugin)
        found = lint(pipeline, options)
        facts: dict[str, Any] = {
            "model": model, "fine": found.fine, "findings": [attrs.asdict(f) for f in found.findings],
        }  # fmt: skip
        if found.lowered is not None:
            facts |= costs(found.lowered, options, energy)
            facts["graph"] = columns(found.lowered)
            facts["errors"] = errors_of(pipeline, found.lowered)
    if html is not None:
        with writing(html):
            write_atomically(html, page(facts).encode())
    if as_json:
        print_json(facts)
    else:
        show(facts)
    if not found.fine:
        raise typer.Exit(1)


def shape_of(lowered: Lowered) -> Shape:
    """Sizes of a lowered language model."""
    plan = lowered.parts["text"].plan
    return Shape(**{f.name: plan[f.name] for f in attrs.fields(Shape)})


def bits_of(lowered: Lowered, *, head: bool) -> float:
    """Bits per weight of the body or of the head, scales included."""
    some = [m for n, m in lowered.parts["text"].matrices.items() if (n == "lm_head.weight") is head]
    return sum(m.codes.size * m.bits + 32 * len(m.scales) for m in some) / sum(m.codes.size for m in some)


def costs(lowered: Lowered, options: Options, energy: Picojoules | None = None) -> dict[str, Any]:
    """The what-if table of a lowered model on the phone, a picture in each of its graphs, and what was assumed."""
    energy = energy or Picojoules()
    shape = shape_of(lowered)
    base = Choice(bits=bits_of(lowered, head=False), head_bits=bits_of(lowered, head=True), context=options.rows)
    plain = cost(shape, Choice(bits=16, head_bits=16, context=options.rows), Machine())
    rows = [
        {
            "what": name, "bytes": one.bytes, "weights": one.weights, "head": one.head, "cache": one.cache,
            "activations": one.activations, "milliseconds": one.seconds * 1e3, "memory": one.memory,
            "millijoules": 1e3 * energy.joules(one.bytes, one.macs),
            "memory_change": 100 * (one.memory / plain.memory - 1),
            "speed_change": 100 * (plain.seconds / one.seconds - 1),
        }
        for name, one in what_if(shape, base, Machine())
    ]  # fmt: skip
    out: dict[str, Any] = {
        "bandwidth": PHONE, "what_if": rows, "assumed": [*ASSUMED, *energy.assumed()], "energy": attrs.asdict(energy),
        "reported_by_others": REPORTED,
    }  # fmt: skip
    if "vision" in lowered.parts:
        part, merge = lowered.parts["vision"], lowered.parts["vision"].plan["merge"] ** 2
        count = sum(m.codes.size for m in part.matrices.values())
        bits = max(m.bits for m in part.matrices.values())
        graphs = [(high * wide // merge, "vision") for high, wide in lowered.grids]
        graphs += [(tokens, f"vision_{tokens}") for tokens in lowered.buckets]
        out["pictures"] = []
        for tokens, name in graphs:
            moved = picture_bytes(part.plan, count, bits, tokens * merge)
            joules = energy.joules(moved, picture_macs(part.plan, count, tokens * merge))
            out["pictures"].append({
                "graph": name, "tokens": tokens, "patches": tokens * merge, "bytes": moved,
                "milliseconds": moved / PHONE * 1e3, "millijoules": 1e3 * joules,
            })  # fmt: skip
        out["shapes"] = examples(lowered.buckets, part.plan["patch"] * part.plan["merge"])
    return out


def show(facts: dict[str, Any]) -> None:
    """Print findings and costs."""
    console = stdout()
    rows = [(f["level"], f["layer"], f["what"], f["fix"]) for f in facts["findings"]]
    console.print(table(("", "where", "what", "do this"), rows, facts["model"]))
    if "what_if" not in facts:
        return
    cells = [
        (
            r["what"], f"{r['bytes'] / 1e6:,.2f}", f"{r['cache'] / 1e6:,.2f}", f"{r['milliseconds']:.3f}",
            f"{r['millijoules']:.3g}",
            f"{r['memory'] / 1e6:,.1f}", f"{r['memory_change']:+.0f} %", f"{r['speed_change']:+.0f} %",
        )
        for r in facts["what_if"]
    ]  # fmt: skip
    heads = (
        "what if",
        "MB a token",
        "of it cache",
        "ms at least",
        "mJ",
        "MB kept",
        "memory beside float16",
        "speed",
    )
    console.print(table(heads, cells, f"one token at {facts['bandwidth'] / 1e9:.0f} GB/s"))
    for one in facts.get("pictures", ()):
        moved = f"{one['bytes'] / 1e6:,.2f} MB, {one['milliseconds']:.3f} ms at least, {one['millijoules']:.3g} mJ"
        console.print(f"a picture of {one['tokens']} tokens ({one['patches']} patches, graph {one['graph']}): {moved}")
    for one in facts.get("shapes", ()):
        seen = f"seen as {size(one['seen'])}, {one['tokens']} tokens, graph vision_{one['graph']}"
        console.print(f"{one['picture']} of {size(one['size'])}, budget {one['budget']}: {seen}")
    for line in facts["assumed"]:
        console.print(f"assumed: {line}")
    theirs = facts["reported_by_others"]
    said = f"{theirs['memory']} % memory and +{theirs['speed']:g} % speed"
    console.print(f"the AndesVL report gives {said}, of its own model beside its own baseline")


def size(pair: Sequence[int]) -> str:
    """Width and height in words."""
    return f"{pair[0]}x{pair[1]}"
