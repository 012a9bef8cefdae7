"""Operators that the vendor's plugin left over, with the layer of the model that caused each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIRST, LAST = "before the layers", "behind the layers"


def operators(model: Any) -> Iterator[tuple[int, str, list[str], list[str]]]:
    """(graph, operator, names of inputs, names of outputs), in order."""
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    for number, graph in enumerate(model.subgraphs):
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            told = [[graph.tensors[i].name.decode() for i in some if i >= 0] for some in (op.inputs, op.outputs)]
            yield number, names[max(code.builtinCode, code.deprecatedBuiltinCode)], *told


def places(model: Any) -> dict[str, str]:
    """Name of an operator's output -> where it stands: a layer's number, or before or behind them all.

    Layers are counted by the sum that ends each (`graphs.Layer.add2`, `graphs.Block.add2`).
    """
    out: dict[str, str] = {}
    layer, now, graph = dict[int, int](), dict[str, int](), -1
    for number, kind, _, outputs in operators(model):
        if number != graph:
            graph, layer[number] = number, 0
        now |= dict.fromkeys(outputs, layer[number])
        if kind == "ADD" and any("Add_add2" in name for name in outputs):
            layer[number] += 1
    total = max(layer.values(), default=0)  # a prompt graph does not compute what only its logits would need
    for _, _, inputs, outputs in operators(model):
        for name in outputs:
            # what needs nothing of a layer yet, such as a lookup of positions, stands before them
            alone = not any(known in out and out[known] != FIRST for known in inputs)
            first = now[name] == 0 and alone and not any(m in n for n in (*inputs, name) for m in ("Linear", "Norm"))
            out[name] = FIRST if first or not total else LAST if now[name] == total else f"layer {now[name]}"
    return out


def left(source: Path, applied: Path, graphs: int) -> list[dict[str, Any]]:
    """Operators of the first `graphs` subgraphs of `applied` that were not compiled: kind, place and count."""
    import ai_edge_litert.tools.flatbuffer_utils as files

    known, count = places(files.read_model(str(source))), dict[tuple[str, str], int]()
    for number, kind, _, outputs in operators(files.read_model(str(applied))):
        if number < graphs and kind != "CUSTOM":  # what was compiled is one custom operator
            where = next((known[name] for name in outputs if name in known), "")
            count[kind, where] = count.get((kind, where), 0) + 1
    return [{"operator": kind, "where": where, "count": n} for (kind, where), n in count.items()]
