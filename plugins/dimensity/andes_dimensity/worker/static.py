"""Static int16 activations: ranges seen on prompts, and prompts run through the layout "npu"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MASKED = -100.0
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
    engine: Any, plan: Mapping[str, Any], tables: Arrays, prompts: Sequence[np.ndarray]
) -> Iterator[tuple[str, Arrays]]:
    """Each prompt (n + 1, D) as a pass over n rows and one over the last -> signature, and what comes out.

    engine: LiteRT's interpreter of a file.
    """
    adapter = {name: value for name, value in tables.items() if name.startswith("lora_")}
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
        inputs = {"embeddings": embeds, "mask": mask, **places(0, t), **cache, **adapter}
        out = called(read, inputs)
        yield f"prefill_{t}", out
        for i in layers:
            cache[f"kv_cache_k_{i}"][:, :, :n] = out[f"kv_slice_k_{i}"][:, :, :n]
            cache[f"kv_cache_v_{i}"][..., :n] = out[f"kv_slice_v_{i}"][..., :n]
        mask = np.full((1, 1, 1, rows + 1), MASKED, np.float32)
        mask[..., :n] = mask[..., rows:] = 0
        inputs = {"embeddings": prompt[n:][None], "mask": mask, **places(n, 1), **cache, **adapter}
        yield "decode", called(step, inputs)


def ranges(
    file: Path, plan: Mapping[str, Any], tables: Arrays, prompts: Sequence[np.ndarray], trained: Any, bank: Any
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Scales by role, and by name of the tensor: trained ones, and what these prompts show."""
    import ai_edge_litert.tools.flatbuffer_utils as files
    from ai_edge_litert.interpreter import Interpreter
    from scales import by_floats, chosen, handed, roles

    model = files.read_model(str(file))
    wanted: dict[int, list[tuple[int, str]]] = {}
    for number, tensor, role in roles(model, by_floats(model, bank)):
        wanted.setdefault(number, []).append((tensor, role))
    number_of = {one.signatureKey.decode(): one.subgraphIndex for one in model.signatureDefs}
    engine, largest = Interpreter(str(file), num_threads=1, experimental_preserve_all_tensors=True), dict[str, float]()
    for signature, _ in steps(engine, plan, tables, prompts):
        number = number_of[signature]
        for tensor, role in wanted[number]:
            value = float(np.abs(engine.get_tensor(tensor, subgraph_index=number)).max())
            largest[role] = max(largest.get(role, 0.0), value)
    del engine
    table = chosen(largest, bank, trained)
    return table, handed(model, bank, table)


def logits(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Logits of the last row of each prompt, as `logits.npy` (prompts, V); of static int16 the scales by role too."""
    from ai_edge_litert.interpreter import Interpreter
    from export import loaded
    from safetensors.numpy import load_file
    from scales import read

    file, tables = Path(job["file"]), load_file(folder / "text.safetensors")
    if (folder / "lora.safetensors").is_file():
        tables |= load_file(folder / "lora.safetensors")
    prompts = list(load_file(folder / "prompts.safetensors").values())
    engine = Interpreter(str(file), num_threads=1)
    found = [out["logits"].reshape(-1) for s, out in steps(engine, job["text"], tables, prompts) if s == "decode"]
    np.save(folder / "logits.npy", np.stack(found))
    table = read(file, loaded(folder / "text.safetensors", job["bits"])[1]) if job["kind"] == "a16" else {}
    return {"prompts": len(found), "scales": table}


def scales(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Scales of a file of static int16, by role."""
    from export import loaded
    from scales import read

    return {"scales": read(Path(job["file"]), loaded(folder / "text.safetensors", job["bits"])[1])}
