"""Graphs, tokenizer and metadata as one .litertlm file."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PICTURE = "<|image|>"
"""What LiteRT-LM takes for a picture's place in prompts of the model type `gemma4`."""


def bundle(folder: Path, facts: Mapping[str, Any], grids: Any, vision: Mapping[str, Any]) -> dict[str, Any]:
    """Write `model.litertlm` into the folder -> its bytes and what it holds."""
    from litert_lm_builder import DType, LitertLmFileBuilder, Metadata, TfLiteModelType
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    told = llm_metadata_pb2.LlmMetadata()
    told.max_num_tokens = facts["rows"]
    for number in facts["stop"]:
        told.stop_tokens.add().token_ids.ids.append(number)
    told.jinja_prompt_template = facts["template"]
    told.supports_thinking, told.supports_function_calling = facts["thinking"], False
    told.sampler_params.type, told.sampler_params.k = 1, 1  # the best token, as `andes generate` takes by default
    told.sampler_params.p, told.sampler_params.temperature = 1.0, 1.0
    if facts["buckets"]:
        any_shape(told, facts, vision)
    else:
        kind = told.llm_model_type.generic_model
        kind.image_enabled = bool(grids)
        for rows, columns in grids:
            # what splits the prompt must be kept: without the group the runtime finds no place for a picture
            kind.image_token_regex, kind.delimiter_regex = re.escape(facts["image"]), f"({re.escape(facts['image'])})"
            kind.image_tensor_height, kind.image_tensor_width = rows * vision["patch"], columns * vision["patch"]
    (folder / "metadata.pb").write_bytes(told.SerializeToString())
    made = LitertLmFileBuilder()
    held = [("text", TfLiteModelType.PREFILL_DECODE), ("embedder", TfLiteModelType.EMBEDDER)]
    if facts["buckets"]:
        held.append(("end", TfLiteModelType.END_OF_VISION))
    if vision:
        held += [("vision", TfLiteModelType.VISION_ENCODER), ("projector", TfLiteModelType.VISION_ADAPTER)]
    names = {"metadata": folder / "metadata.pb", "tokenizer": folder / "tokenizer" / "tokenizer.json"}
    names |= {name: folder / f"{name}.tflite" for name, _ in held}
    said = {"author": "andes_sdk", "andes": json.dumps(facts["options"])} | facts["identity"]
    parts = {name: sha256(path.read_bytes()) for name, path in names.items()}
    said["parts"] = json.dumps(parts | {"options": sha256(repr(sorted(said.items())).encode())})
    for key, value in said.items():
        made.add_system_metadata(Metadata(key=key, value=value, dtype=DType.STRING))
    made.add_llm_metadata(str(names["metadata"]))
    made.add_hf_tokenizer(str(names["tokenizer"]))
    for name, section in held:
        made.add_tflite_model(str(folder / f"{name}.tflite"), section)
    with open(folder / "model.litertlm", "wb") as file:
        made.build(file)
    return {"bytes": (folder / "model.litertlm").stat().st_size, "sections": [name for name, _ in held]}


def any_shape(told: Any, facts: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Metadata of pictures that keep their shape. The model type is `gemma4`: `generic_model` ignores its patch fields.

    LiteRT-LM 0.18.1 looks for `<|image|>` in the prompt, and puts the graph `end`'s row behind a picture.
    """
    kind = told.llm_model_type.gemma4
    kind.patch_width = kind.patch_height = vision["patch"]
    kind.pooling_kernel_size = vision["merge"]
    kind.max_num_patches = max(facts["buckets"]) * vision["merge"] ** 2
    kind.start_of_image_token.token_str, kind.end_of_image_token.token_str = "", facts["image_end"]
    told.jinja_prompt_template = facts["template"].replace(facts["image"] + facts["image_end"], PICTURE)


def sha256(content: bytes) -> str:
    """In hex."""
    return hashlib.sha256(content).hexdigest()


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    """The .tflite files of a bundle by what they are, what it says of itself, and the parts that are not as written."""
    from google.protobuf import text_format
    from litert_lm_builder import LitertLmFileBuilder
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    folder.mkdir()
    made = LitertLmFileBuilder.unpack(str(path), str(folder))
    said = {m.key: m.value for m in made._system_metadata if m.key not in ("uuid", "creation_timestamp")}
    kinds = {"prefill_decode": "text", "embedder": "embedder", "vision_encoder": "vision"}
    kinds |= {"vision_adapter": "projector", "end_of_vision": "end"}
    found = {
        name: str(file)
        for file in sorted(folder.rglob("*.tflite"))
        for mark, name in kinds.items()
        if mark in file.name.lower()
    }
    wanted = json.loads(said.pop("parts", "{}"))
    seen = {sha256(Path(file).read_bytes()) for file in found.values()}
    seen.add(sha256(repr(sorted(said.items())).encode()))
    for file in folder.rglob("*.pbtext"):
        told = text_format.Parse(file.read_text(encoding="utf-8"), llm_metadata_pb2.LlmMetadata())
        seen.add(sha256(told.SerializeToString()))
    for file in folder.rglob("*.zlib"):
        content = file.read_bytes()
        for start in (0, 8):  # some builders put the length before it
            try:
                seen.add(sha256(zlib.decompress(content[start:])))
            except zlib.error:
                continue
    return {
        "files": found, "options": json.loads(said.get("andes", "null")), "said": said,
        "broken": sorted(name for name, mark in wanted.items() if mark not in seen), "whole": bool(wanted),
    }  # fmt: skip


def compared(folder: Path, job: Any) -> dict[str, Any]:
    """Every matrix of `files` (part -> path) beside the tables of that part in the folder."""
    from export import loaded, ops
    from inject import verify

    out = {}
    for name, file in job["files"].items():
        facts = verify(Path(file), loaded(folder / f"{name}.safetensors", job["bits"])[1])
        out[name] = facts | {"ops": ops(Path(file))}
    return {"files": out}
