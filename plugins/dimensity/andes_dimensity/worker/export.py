"""A job's plan and weights -> .tflite files with our codes, compared with what was handed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scales
import torch
from graphs import Decoder, Embedder, Encoder, Inside, Outside, Projector
from inject import Bank, quantise, verify
from native import EndOfPicture, NativeEncoder, NativeProjector
from torch import Tensor, nn

Tell = Callable[[str], None]


def loaded(path: Path, bits: Mapping[str, int]) -> tuple[dict[str, Tensor], Bank]:
    """Weights by name, dequantised, and the bank of those that have codes."""
    from safetensors.numpy import load_file

    raw, bank, out = load_file(path), Bank(), {}
    for name, array in raw.items():
        if name.endswith(".codes"):
            name = name.removesuffix(".codes")
            out[name] = torch.from_numpy(bank.add(name, array, raw[f"{name}.scales"], bits[name]))
        elif not name.endswith(".scales"):
            out[name] = torch.from_numpy(array.copy())
    return out, bank


def export(folder: Path, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Write every graph of the job into its folder -> what was written, and how it compares."""
    torch.set_num_threads(int(job.get("threads", 1)))
    files: dict[str, Any] = {}
    if "text" in job:
        files |= _text(folder, job, tell)
        files |= _embedder(folder, job, tell)
    for part in ("vision", "projector"):
        if part in job:
            files |= _picture(folder, job, part, tell)
    result = {"files": files, "versions": versions()}
    if "bundle" in job:
        from bundling import bundle

        tell("bundling")
        vision = job.get("vision", {})
        result["bundle"] = bundle(folder, job["bundle"] | {"buckets": job["buckets"]}, job["grids"], vision)
    return result


def _written(folder: Path, name: str, made: Any, bank: Bank, tell: Tell) -> dict[str, Any]:
    """A converted model -> NAME.tflite with codes, and the facts of it."""
    made.export(str(folder / f"{name}.float.tflite"))
    return _coded(folder, name, bank, tell)


def _coded(
    folder: Path,
    name: str,
    bank: Bank,
    tell: Tell,
    static: Callable[[Path], Any] | None = None,
    trained: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """NAME.float.tflite -> NAME.tflite with codes, and the facts of it. `static`: scales of all tensors, for int16."""
    plain, target = folder / f"{name}.float.tflite", folder / f"{name}.tflite"
    table, limits = ({}, None) if static is None else static(plain)
    tell(f"writing codes of {name}")
    quantise(plain, target, bank, "float" if static is None else "a16", limits)
    plain.unlink()
    facts = verify(target, bank) | {"bytes": target.stat().st_size, "ops": ops(target)}
    if facts["foreign"] or facts["missing"]:
        raise ValueError(f"{name}: the written file lacks {facts['missing'][:5]}, and has {facts['foreign'][:5]}")
    if table:
        facts["activations"] = scales.compared(target, bank, table, trained or {})
    return facts


def _text(folder: Path, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    import litert_torch
    from safetensors.numpy import load_file

    weights, bank = loaded(folder / "text.safetensors", job["bits"])
    plan, layout = job["text"], job["layout"]
    body: Any
    body, rows = Decoder(plan, weights).eval(), plan["rows"]

    def cache() -> dict[str, Tensor]:
        sizes, layers = (1, plan["kv_heads"], rows, plan["head"]), range(plan["layers"])
        keys = {f"cache_k_{n}": torch.zeros(sizes) for n in layers}
        return keys | {f"cache_v_{n}": torch.zeros(sizes).transpose(2, 3).contiguous() for n in layers}

    def lora() -> dict[str, Any]:
        shapes = {n.removeprefix("lora_"): s for n, s in job.get("lora", {}).items()}
        return {"lora": {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}} if shapes else {}

    def sample(t: int) -> dict[str, Any]:
        embeds = torch.randn(1, t, plan["width"]) * 0.1
        if layout == "cpu":
            return {
                "embeddings": embeds, "input_pos": torch.arange(t, dtype=torch.int32),
                "mask": torch.zeros(1, 1, t, rows), "kv": cache(),
                **lora(),
            }  # fmt: skip
        # one tensor given twice would become one input of the graph
        cos, sin = torch.ones(1, 1, t, plan["head"]), torch.zeros(1, 1, t, plan["head"])
        return {
            "embeddings": embeds,
            "cos": cos,
            "sin": sin,
            "mask": torch.zeros(1, 1, t, rows + t),
            "kv": cache(),
            **lora(),
        }

    def graph(logits: bool) -> nn.Module:
        if layout == "cpu":
            return Inside(body, logits, (weights["cosines"], weights["sines"])).eval()
        return Outside(body, logits).eval()

    converter = litert_torch.Converter()
    wanted = [(f"prefill_{plan['prompt']}", plan["prompt"], False), ("decode", 1, True)]
    if plan.get("tree"):
        wanted.append((f"verify_{plan['tree']}", plan["tree"], True))
    for name, t, logits in wanted:
        tell(f"lowering {name}")
        converter.signature(name, graph(logits), sample_kwargs=sample(t))
    light = sum(t.numel() for t in weights.values()) > 2e8
    made = converter.convert(lightweight_conversion=True) if light else converter.convert()
    weights.clear()  # what was converted holds its own floats: of a large model they would be twice in memory
    body = converter = None
    made.export(str(folder / "text.float.tflite"))
    made = None

    def limits(plain: Path) -> Any:
        from static import ranges

        tell("seeing prompts")
        prompts = list(load_file(folder / "prompts.safetensors").values())
        return ranges(plain, plan, load_file(folder / "text.safetensors"), prompts, job["ranges"], bank)

    static = job["kind"] == "a16"
    return {"text": _coded(folder, "text", bank, tell, limits if static else None, job.get("ranges"))}


def _embedder(folder: Path, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    import litert_torch

    weights, bank = loaded(folder / "embedder.safetensors", job["bits"])
    tell("lowering the embedding")
    lookup, inputs = Embedder(weights["model.embed_tokens.weight"]).eval(), torch.zeros(1, 1, dtype=torch.int32)
    made = litert_torch.signature("embedder", lookup, sample_kwargs={"token_ids": inputs}).convert()
    if job["buckets"] and "bundle" in job:
        row = weights["model.embed_tokens.weight"][job["bundle"]["image_end_id"]][None, None].clone()
        end = litert_torch.signature("end", EndOfPicture(row).eval(), sample_kwargs={}).convert()
        end.export(str(folder / "end.tflite"))
    return {"embedder": _written(folder, "embedder", made, bank, tell)}


def _picture(folder: Path, job: Mapping[str, Any], part: str, tell: Tell) -> dict[str, Any]:
    """Encoder or projector: one file, with a signature for each size of picture, or for each number of its tokens."""
    import litert_torch

    plan = job[part]
    weights, bank = loaded(folder / f"{part}.safetensors", job["bits"])
    converter: Any = litert_torch.Converter()
    for rows, columns in job["grids"]:
        name = f"{part}_{rows}x{columns}" if len(job["grids"]) > 1 else part
        tell(f"lowering {name}")
        if part == "vision":
            p = plan["patch"]
            inputs = {"images": torch.rand(1, rows * p, columns * p, 3)}
            converter.signature(name, Encoder(plan, weights, rows, columns).eval(), sample_kwargs=inputs)
        else:
            inputs = {"soft_tokens": torch.randn(1, rows * columns, plan["features"])}
            converter.signature(name, Projector(plan, weights, rows, columns).eval(), sample_kwargs=inputs)
    for tokens in reversed(job["buckets"]):  # LiteRT-LM looks at the first one for what holds for all: the largest
        block = plan["merge"] ** 2
        tell(f"lowering {part} of {tokens} tokens")
        made: Any
        if part == "vision":
            flat = torch.rand(1, tokens * block, 3 * plan["patch"] ** 2)
            inputs = {"images": flat, "positions_xy": torch.zeros(1, tokens * block, 2, dtype=torch.int32)}
            made = NativeEncoder(plan, weights, tokens)
        else:
            inputs = {"soft_tokens": torch.randn(1, tokens, block * plan["features"])}
            made = NativeProjector(plan, weights)
        converter.signature(f"vision_{tokens}", made.eval(), sample_kwargs=inputs)  # LiteRT-LM wants it of both
    return {part: _written(folder, part, converter.convert(), bank, tell)}


def ops(path: Path) -> list[dict[str, Any]]:
    """Per signature its operators, counted."""
    import collections

    import ai_edge_litert.tools.flatbuffer_utils as files
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    model = files.read_model(str(path))
    out = []
    for number, graph in enumerate(model.subgraphs):
        count: collections.Counter[str] = collections.Counter()
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            count[names[max(code.builtinCode, code.deprecatedBuiltinCode)]] += 1
        keys = [s.signatureKey.decode() for s in model.signatureDefs or () if s.subgraphIndex == number]
        out.append({"signature": keys[0] if keys else "", "ops": dict(sorted(count.items()))})
    return out


def versions() -> dict[str, str]:
    """Of the packages that made the file."""
    from importlib.metadata import version

    names = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "litert-lm-builder", "litert-lm-api", "torch")
    return {name: version(name) for name in names}
