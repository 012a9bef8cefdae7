"""Static int16 activations: ranges seen on prompts, and prompts run through the layout "npu"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MASKED = -100.0
MARGIN = 2.0
"""What ranges that were seen are widened by: a bit of sixteen, for values that prompts did not show."""
Arrays = dict[str, np.ndarray]


def called(runner: Any, inputs: Arrays) -> Arrays:
    """A signature on float arrays, whatever it takes and gives."""
    arrays = dict(inputs)
    for name, facts in runner.get_input_details().items():
        if facts["dtype"] == np.int16:
            step = facts["quantization_parameters"]["scales"][0]
            arrays[name] = np.clip(np.rint(arrays[name] / step), -32768, 32767).astype(np.int16)
    details, out = runner.get_output_details(), {}
    for name, value in runner(**arrays).items():
        if details[name]["dtype"] == np.int16:
            value = value.astype(np.float32) * details[name]["quantization_parameters"]["scales"][0]
        out[name] = value
    return out


def steps(
    file: Path, plan: Mapping[str, Any], tables: Arrays, prompts: Sequence[np.ndarray]
) -> Iterator[tuple[str, Arrays, Arrays]]:
    """Each prompt (n + 1, D) as a pass over n rows and one over the last -> signature, what goes in, what comes out."""
    from ai_edge_litert.interpreter import Interpreter

    engine = Interpreter(str(file), num_threads=1)
    t, rows, layers = plan["prompt"], plan["rows"], range(plan["layers"])
    read, step = engine.get_signature_runner(f"prefill_{t}"), engine.get_signature_runner("decode")

    def places(start: int, count: int) -> Arrays:
        return {
            short: tables[long][start : start + count][None, None]
            for short, long in (("cos", "cosines"), ("sin", "sines"))
        }

    for prompt in prompts:
        n = len(prompt) - 1
        sizes = (1, plan["kv_heads"], rows, plan["head"])
        cache = {f"kv_cache_k_{i}": np.zeros(sizes, np.float32) for i in layers}
        cache |= {f"kv_cache_v_{i}": np.zeros((*sizes[:2], sizes[3], rows), np.float32) for i in layers}
        embeds = np.zeros((1, t, plan["width"]), np.float32)
        embeds[0, :n] = prompt[:n]
        mask = np.full((1, 1, t, rows + t), MASKED, np.float32)
        mask[..., rows:] = np.triu(np.full((t, t), MASKED, np.float32), 1)
        inputs = {"embeddings": embeds, "mask": mask, **places(0, t), **cache}
        out = called(read, inputs)
        yield f"prefill_{t}", inputs, out
        for i in layers:
            cache[f"kv_cache_k_{i}"][:, :, :n] = out[f"kv_slice_k_{i}"][:, :, :n]
            cache[f"kv_cache_v_{i}"][..., :n] = out[f"kv_slice_v_{i}"][..., :n]
        mask = np.full((1, 1, 1, rows + 1), MASKED, np.float32)
        mask[..., :n] = mask[..., rows:] = 0
        inputs = {"embeddings": prompt[n:][None], "mask": mask, **places(n, 1), **cache}
        yield "decode", inputs, called(step, inputs)


def ranges(
    file: Path,
    plan: Mapping[str, Any],
    tables: Arrays,
    prompts: Sequence[np.ndarray],
    trained: Mapping[str, float],
    bank: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """Least and largest value of every tensor on these prompts; inputs of matrices with a trained scale have that."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize as own
    from inject import add_static, register

    data: dict[str, list[Arrays]] = {}
    for signature, inputs, _ in steps(file, plan, tables, prompts):
        data.setdefault(signature, []).append(inputs)
    if plan.get("tree"):
        raise ValueError("static int16 with a verification graph is not supported")
    register(own.get_tensor_quant_params)
    work = quantizer.Quantizer(str(file))
    add_static(work)
    found = work.calibrate(data, num_threads=1)
    seen: dict[str, dict[str, np.ndarray]] = {
        name: {k: np.asarray(v) * MARGIN for k, v in one.items()} for name, one in found.items()
    }
    for tensor, name in inputs_of_matrices(file, bank).items():
        if name in trained:
            seen[tensor] = {**seen.get(tensor, {}), "scale": np.array(trained[name], np.float32)}
    return seen


def inputs_of_matrices(file: Path, bank: Any) -> dict[str, str]:
    """Tensor that a matrix is multiplied with -> name of the matrix."""
    import ai_edge_litert.tools.flatbuffer_utils as files

    model, out = files.read_model(str(file)), {}
    for graph in model.subgraphs:
        for op in graph.operators:
            if len(op.inputs) < 2:
                continue
            weight = graph.tensors[op.inputs[1]]
            data = model.buffers[weight.buffer].data
            if data is None or weight.type != 0 or weight.shape is None or len(weight.shape) != 2:
                continue
            found = bank.of(np.frombuffer(bytes(data), np.float32).reshape(tuple(weight.shape)))
            if found is not None:
                out[graph.tensors[op.inputs[0]].name.decode()] = found[0]
    return out


def logits(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Logits of the last row of each prompt, as `logits.npy` (prompts, V)."""
    from safetensors.numpy import load_file

    tables = load_file(folder / "text.safetensors")
    prompts = list(load_file(folder / "prompts.safetensors").values())
    found = [
        out["logits"].reshape(-1)
        for s, _, out in steps(Path(job["file"]), job["text"], tables, prompts)
        if s == "decode"
    ]
    np.save(folder / "logits.npy", np.stack(found))
    return {"prompts": len(found)}
