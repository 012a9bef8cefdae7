"""The shape of Qwen3-0.6B with random weights, as our artefact and as GGUF: speed does not depend on their values."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 151_936, 1024, 3072, 28, 16, 8, 128

BLOCKS = {"F16": (1, 2), "Q8_0": (32, 34), "Q4_0": (32, 18), "TQ2_0": (256, 66), "TQ1_0": (256, 54)}
"""llama.cpp type -> weights and bytes of a block."""

_SCALE_AT = {"TQ2_0": 64, "TQ1_0": 52}


def write_artefact(path: Path, body: str, embedding: str) -> int:
    """An artefact whose embedding is the LM head as well -> bytes that a token reads."""
    from andes_compression.pack import arrange
    from andes_compression.recipe import default_recipe
    from andes_packing.formats import TwoOfEight, find

    from andes_sdk import Pipeline

    pipe = Pipeline.from_plugins(["mlp", {"aimv2": {"preset": "tiny"}}, {"qwen3": {"preset": "0.6b"}}])
    model = pipe.meta_model()
    recipe = default_recipe(model, body, head=embedding)
    with tempfile.TemporaryDirectory() as folder:
        pipe.tokenizer.save(Path(folder))
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    header = arrange(model, recipe, pipe.plan, files={name: len(content) for name, content in files.items()})
    # checksums of files are looked at when they are read, those of weights only where a user asks for it
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    header = evolve(header, files={n: evolve(place, sha256=digests[n]) for n, place in header.files.items()})
    head, rng = header.to_bytes(), np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(head)
        for entry in header.tensors.values():
            file.seek(len(head) + entry.offset)
            if entry.format.startswith("raw:"):
                file.write(np.ones(entry.nbytes // 4, np.float32).tobytes())
                continue
            group = find(entry.format).group_bytes
            packed = rng.integers(0, 256, entry.nbytes, np.uint8).reshape(-1, group)
            packed[:, :32] = np.full(16, 1e-3, np.float16).view(np.uint8)
            if isinstance(find(entry.format), TwoOfEight):  # of 32 patterns that bits can name, 28 exist
                packed[:, 32 : 32 + find(entry.format).group // 4] = 0
            file.write(packed.data)
        for name, place in header.files.items():
            file.seek(len(head) + place.offset)
            file.write(files[name])
        file.truncate(len(head) + header.nbytes)
    return sum(e.nbytes for n, e in header.tensors.items() if n.startswith("language_model."))


def write_gguf(path: Path, body: str, embedding: str) -> int:
    """A GGUF file whose embedding is the LM head as well -> bytes that a token reads."""
    import gguf

    writer = gguf.GGUFWriter(path, "qwen3")
    _metadata(writer)
    rng, size = np.random.default_rng(0), 0

    def matrix(name: str, kind: str, rows: int, cols: int) -> int:
        quant = getattr(gguf.GGMLQuantizationType, kind)
        if kind == "F16":
            values = (rng.standard_normal((rows, cols), np.float32) * 0.02).astype(np.float16)
            writer.add_tensor(name, values)
            return values.nbytes
        weights, nbytes = BLOCKS[kind]
        blocks = rng.integers(0, 256, (rows, cols // weights, nbytes), np.uint8)
        at = _SCALE_AT.get(kind, 0)
        blocks[:, :, at : at + 2] = np.full(1, 1e-3, np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=quant)
        return blocks.nbytes

    def norm(name: str, width: int) -> None:
        writer.add_tensor(name, np.ones(width, np.float32))

    size += matrix("token_embd.weight", embedding, VOCABULARY, WIDTH)
    for n in range(LAYERS):
        shapes = {
            "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (KV_HEADS * HEAD, WIDTH), "attn_v": (KV_HEADS * HEAD, WIDTH),
            "attn_output": (WIDTH, HEADS * HEAD), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }  # fmt: skip
        size += sum(matrix(f"blk.{n}.{name}.weight", body, *shape) for name, shape in shapes.items())
        for name, width in {"attn_norm": WIDTH, "ffn_norm": WIDTH, "attn_q_norm": HEAD, "attn_k_norm": HEAD}.items():
            norm(f"blk.{n}.{name}.weight", width)
    norm("output_norm.weight", WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return size


def _metadata(writer: Any) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    # a vocabulary of the right size, of words that mean nothing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{n}" for n in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(VOCABULARY - 1)
