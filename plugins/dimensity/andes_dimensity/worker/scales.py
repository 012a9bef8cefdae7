"""Scales of the activations in a graph of the layout "npu": what each tensor is for, set before writing, read after.

A role is the name of a matrix with ".in" or ".out" behind it, or one of a layer's attention (`model.layers.N.keys`):

    query (scaled), keys, scores, weights (of the softmax), values, mixed

Rows of the cache and new rows share a scale, and so do all signatures of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from inject import INT4, INT16, digest, unpacked

HIGH = 32767
MARGIN = 2.0
"""What ranges that were seen are widened by: a bit of sixteen, for values that prompts did not show."""
ATTENTION = (("query", "keys", "scores"), ("query", "keys", "scores"),
             ("weights", "values", "mixed"), ("weights", "values", "mixed"))  # fmt: skip
"""Inputs and output of a layer's four products, in the order of `graphs.Layer.outside`."""


def products(model: Any, named: Callable[[Any, int], str | None]) -> Iterator[tuple[int, Any, int, str]]:
    """(number of the graph, operator, tensor, role) of every product in a file.

    named: (graph, tensor) -> name of the matrix that the tensor is.

    Raises:
        ValueError: a product that is not in the layout's order.
    """
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.BuiltinOperator
    for number, graph in enumerate(model.subgraphs):
        count = 0
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            kind = max(code.builtinCode, code.deprecatedBuiltinCode)
            if kind == kinds.FULLY_CONNECTED:
                name = named(graph, op.inputs[1])
                if name is None:
                    raise ValueError(f"a matrix that nobody handed over: {graph.tensors[op.inputs[1]].name.decode()}")
                yield number, op, op.inputs[0], f"{name}.in"
                yield number, op, op.outputs[0], f"{name}.out"
            elif kind == kinds.BATCH_MATMUL:
                layer, which = divmod(count, 4)
                count += 1
                for tensor, role in zip((*op.inputs, *op.outputs), ATTENTION[which], strict=True):
                    yield number, op, tensor, f"model.layers.{layer}.{role}"
        if count % 4:
            raise ValueError(f"{count} products of attention, not four a layer")


def roles(model: Any, named: Callable[[Any, int], str | None]) -> Iterator[tuple[int, int, str]]:
    """(number of the graph, tensor, role), as `products`."""
    for number, _, tensor, role in products(model, named):
        yield number, tensor, role


def by_floats(model: Any, bank: Any) -> Callable[[Any, int], str | None]:
    """Names of matrices in a file of floats."""

    def named(graph: Any, tensor: int) -> str | None:
        one = graph.tensors[tensor]
        data = model.buffers[one.buffer].data
        if data is None or one.type != 0:
            return None
        found = bank.of(np.frombuffer(bytes(data), np.float32).reshape(tuple(one.shape)))
        return None if found is None else str(found[0])

    return named


def by_codes(model: Any, bank: Any) -> Callable[[Any, int], str | None]:
    """Names of matrices in a file of codes."""
    known = {digest(codes) + digest(steps): name for name, codes, steps, _ in bank.entries()}
    found: dict[int, str | None] = {}

    def named(graph: Any, tensor: int) -> str | None:
        one = graph.tensors[tensor]
        if one.buffer not in found:
            raw = np.frombuffer(bytes(model.buffers[one.buffer].data), np.uint8)
            shape = tuple(int(n) for n in one.shape)
            codes = unpacked(raw, shape) if one.type == INT4 else raw.view(np.int8).reshape(shape)
            found[one.buffer] = known.get(digest(codes) + digest(np.array(one.quantization.scale, np.float32)))
        return found[one.buffer]

    return named


def chosen(largest: Mapping[str, float], bank: Any, trained: Mapping[str, float]) -> dict[str, float]:
    """Role -> scale: as training left it, else from the largest value that prompts showed, with room.

    Raises:
        ValueError: two equal matrices, which are one in a file, with two trained scales.
    """
    for twin, name in bank.twins.items():
        if trained.get(twin) != trained.get(name):
            raise ValueError(f"{twin} and {name} are equal, and have two trained ranges: train them with one")
    out = {}
    for role, value in largest.items():
        name = role.removesuffix(".in")
        if role.endswith(".weights"):
            out[role] = float(np.float32(1 / HIGH))  # a softmax gives 0 to 1, whatever prompts show
        elif name != role and name in trained:
            out[role] = float(np.float32(trained[name]))
        else:
            out[role] = float(np.float32(max(value, 1e-9) * MARGIN / HIGH))
    return out


def handed(model: Any, bank: Any, table: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """By name of each tensor its scale, for the quantiser.

    A tensor that several matrices share has a scale for each, by the matrix's number in its graph; the
    quantiser then rounds it once for each.
    """
    out: dict[str, dict[str, Any]] = {}
    for number, op, tensor, role in products(model, by_floats(model, bank)):
        name = model.subgraphs[number].tensors[tensor].name.decode()
        one = out.setdefault(name, {"scale": np.array(table[role], np.float32), "by_matrix": {}})
        if role.endswith(".in"):
            one["by_matrix"][int(op.inputs[1])] = np.array(table[role], np.float32)
    return out


def read(path: Path, bank: Any) -> dict[str, float]:
    """Role -> scale, of a written file.

    Raises:
        ValueError: signatures that differ in a scale, or a product that is no int16.
    """
    import ai_edge_litert.tools.flatbuffer_utils as files

    model, out = files.read_model(str(path)), dict[str, float]()
    for number, tensor, role in roles(model, by_codes(model, bank)):
        one = model.subgraphs[number].tensors[tensor]
        if one.type != INT16:
            raise ValueError(f"{role} is no int16")
        step = float(np.float32(one.quantization.scale[0]))
        if out.setdefault(role, step) != step:
            raise ValueError(f"two scales of {role}: {out[role]} and {step}")
    for twin, name in bank.twins.items():  # equal matrices are one in the file
        out |= {f"{twin}.{side}": out[f"{name}.{side}"] for side in ("in", "out") if f"{name}.{side}" in out}
    return out


def compared(path: Path, bank: Any, table: Mapping[str, float], trained: Mapping[str, float]) -> dict[str, Any]:
    """Scales of a written file beside those that were handed over, to the bit."""
    found = read(path, bank)
    other = sorted(role for role, step in table.items() if found.get(role) != step)
    taken = sum(role.removesuffix(".in") in trained for role in table if role.endswith(".in"))
    return {"scales": len(table), "exact": len(table) - len(other), "trained": taken, "other": other}
