"""Tiny files of random weights, for tests and examples: written with `gguf` alone, without the exporter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from andes_qwen3.vocabulary import byte_alphabet

from .vocabulary import CONTROL, NORMAL, USER_DEFINED

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>")
_TEXTUAL = ("<think>", "</think>")
_MERGES = ("t h", "th e", "Ġ the", "i n", "e r", "a n", "Ġ a", "o n")


def vocabulary(pre: str = "qwen2") -> dict[str, Any]:
    """Keys of a vocabulary of 256 bytes, eight merges and six added tokens."""
    normal = [*byte_alphabet().values(), *(merge.replace(" ", "") for merge in _MERGES)]
    tokens = [*normal, *_CONTROL, *_TEXTUAL]
    kinds = [NORMAL] * len(normal) + [CONTROL] * len(_CONTROL) + [USER_DEFINED] * len(_TEXTUAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": list(_MERGES),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def shapes(architecture: str, *, width: int, inner: int, layers: int, heads: int, groups: int, head: int, rows: int,
           tied: bool) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Name -> shape of each tensor of an architecture."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    if not tied:
        found["output.weight"] = (rows, width)
    for n in range(layers):
        sizes = {"q": heads * head, "k": groups * head, "v": groups * head}
        block: dict[str, tuple[int, ...]] = {f"attn_{x}.weight": (size, width) for x, size in sizes.items()}
        if architecture == "qwen2":
            block |= {f"attn_{x}.bias": (size,) for x, size in sizes.items()}
        if architecture == "qwen3":
            block |= {f"attn_{x}_norm.weight": (head,) for x in "qk"}
        block |= {
            "attn_output.weight": (width, heads * head),
            "attn_norm.weight": (width,),
            "ffn_norm.weight": (width,),
        }
        block |= {"ffn_gate.weight": (inner, width), "ffn_up.weight": (inner, width), "ffn_down.weight": (width, inner)}
        found |= {f"blk.{n}.{name}": shape for name, shape in block.items()}
    return found


def write_small(
    path: Path,
    architecture: str = "llama",
    *,
    width: int = 32,
    layers: int = 2,
    head: int = 8,
    tied: bool = True,
    pre: str = "qwen2",
    half: bool = True,
    extra: Mapping[str, Any] | None = None,
    arrays: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a random model: 4 query heads, 2 KV heads, inner size twice the width.

    Args:
        half: matrices in F16; otherwise in F32, with which llama.cpp computes without rounding.
        extra: further metadata; None as a value leaves a key out.
        arrays: further tensors by llama.cpp's name.
    """
    words = vocabulary(pre)
    rows, numbers = len(words["tokenizer.ggml.tokens"]), np.random.default_rng(seed)
    sizes = {
        "context_length": 512, "embedding_length": width, "block_count": layers, "feed_forward_length": 2 * width,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": head,
        "attention.value_length": head, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10_000.0,
        "rope.dimension_count": head, "vocab_size": rows,
    }  # fmt: skip
    pairs = {**{f"{architecture}.{key}": value for key, value in sizes.items()}, **words, **(extra or {})}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in pairs.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            adders: dict[type, Callable[[str, Any], None]] = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                str: writer.add_string,
            }
            adders[type(value)](key, value)
    for name, shape in shapes(
        architecture, width=width, inner=2 * width, layers=layers, heads=4, groups=2, head=head, rows=rows, tied=tied
    ).items():
        noise = numbers.standard_normal(shape, np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, (0.1 * noise + ("norm" in name)).astype(np.float32))
        else:
            writer.add_tensor(name, (noise * (2.0 / shape[1]) ** 0.5).astype(np.float16 if half else np.float32))
    for name, array in (arrays or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
