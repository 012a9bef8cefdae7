"""A pipeline's language model as a file that llama.cpp loads.

Left out: the vision encoder and the projector (llama.cpp's "mmproj" files); importance matrices and K-quants, which
llama.cpp's own `llama-quantize` makes from an F16 file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from attrs import frozen

from andes_sdk.errors import CheckpointError, ConfigError
from andes_sdk.files import appearing_file, at_home

from .architecture import FACTORS, interleave, metadata_of, rotated_heads, stored_name
from .blocks import encode
from .options import MODEL_TYPES
from .vocabulary import IMAGE, to_metadata

if TYPE_CHECKING:
    from torch import nn

    from andes_sdk.pipeline import Pipeline

Array = np.ndarray[Any, Any]

_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37}
_TERNARY = ("TQ1_0", "TQ2_0")
_MATRIX_ENDS = ("token_embd.weight", "output.weight")


@frozen(kw_only=True)
class GgufExporter:
    """An `andes_sdk.types.Exporter`. Made by the plugin `gguf-export`."""

    type: str = "auto"
    embedding: str = ""
    name = "gguf"

    def export(self, pipeline: Pipeline, path: Path) -> Mapping[str, Any]:
        """Write the language model; the file appears whole or not at all.

        Returns:
            Facts: `architecture`, `bytes`, `lossless` (whether every tensor is), `left_out`, and for each of `tensors`
            its name, type, shape, whether it is lossless, and its largest and relative error.

        Raises:
            ConfigError: a language model or tokenizer that llama.cpp has no words for.
            CheckpointError: weights that the type cannot hold, or a file that cannot be written.
        """
        path = at_home(path)
        model = pipeline.model.language_model
        fields = fields_of_module(model)
        metadata = metadata_of(fields)
        with TemporaryDirectory() as folder:
            pipeline.tokenizer.save(Path(folder))
            metadata |= to_metadata(Path(folder), fields["vocab_size"])
        metadata[IMAGE] = pipeline.tokenizer.placeholder("image")
        try:
            with appearing_file(path) as whole, TemporaryDirectory(dir=path.parent) as work:
                tensors = self._write(whole, Path(work), path.stem, model, fields, metadata)
        except OSError as error:
            raise CheckpointError("cannot be written", who=str(path), why=str(error), fix="choose another") from None
        return {
            "path": str(path),
            "architecture": fields["model_type"],
            "bytes": path.stat().st_size,
            "lossless": all(row["lossless"] for row in tensors),
            "left_out": "vision encoder and projector: the file holds the language model",
            "tensors": tensors,
        }

    def _write(
        self,
        whole: Path,
        work: Path,
        title: str,
        model: nn.Module,
        fields: Mapping[str, Any],
        metadata: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        writer = gguf.GGUFWriter(whole, fields["model_type"])
        try:
            writer.add_type("model")
            writer.add_name(title)
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            if self.type in _FILE_TYPES:
                writer.add_file_type(_FILE_TYPES[self.type])
            for key, value in metadata.items():
                _add(writer, key, value)
            rows: list[dict[str, Any]] = []
            for name, x in _arrays(model, fields):
                row, data, number = self._tensor(name, x, fields)
                # the header in front states every type, so the numbers wait on disk until all are known
                np.save(waiting := work / f"{len(rows)}.npy", data)
                writer.add_tensor(row["name"], np.load(waiting, mmap_mode="r"), raw_dtype=number)
                rows.append(row)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        return rows

    def _tensor(
        self, name: str, x: Array, fields: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Array, gguf.GGMLQuantizationType | None]:
        """A row of the report, the encoded numbers, and their type where NumPy has none for it."""
        stored = name if name == FACTORS else str(stored_name(name))
        if heads := rotated_heads(name, fields):
            x = interleave(x, heads)
        made = encode(np.ascontiguousarray(x), self._kind(stored, x.ndim), name)
        number = None if made.kind in ("F32", "F16") else gguf.GGMLQuantizationType[made.kind]
        row = {
            "name": stored,
            "type": made.kind,
            "shape": list(x.shape),
            "lossless": made.lossless,
            "max_error": made.max_error,
            "relative_error": made.relative_error,
        }
        return row, made.data, number

    def _kind(self, stored: str, dimensions: int) -> str:
        """llama.cpp wants vectors in float32; ternary embeddings are of no use to anybody."""
        if dimensions < 2:
            return "F32"
        if stored in _MATRIX_ENDS:
            return self.embedding or ("F16" if self.type in _TERNARY else self.type)
        return self.type


def fields_of_module(model: nn.Module) -> dict[str, Any]:
    """The configuration of a language model, as `architecture.fields_of` reads it from a file.

    Raises:
        ConfigError: it is not built on transformers' Llama, Qwen2 or Qwen3.
    """
    c = getattr(model, "config", None)
    kind = getattr(c, "model_type", None)
    if c is None or kind not in MODEL_TYPES:
        why = f"{type(model).__name__} is not built on transformers' {', '.join(MODEL_TYPES)}"
        raise ConfigError("this language model cannot be written", who="gguf-export", why=why)
    biased = [n for n, _ in model.named_parameters() if stored_name(n) is None or (n.endswith("o_proj.bias"))]
    windows = any(layer != "full_attention" for layer in getattr(c, "layer_types", None) or ())
    if windows or c.hidden_act != "silu" or biased:
        why = "sliding windows" if windows else f"activation {c.hidden_act}, tensors {biased[:3]}"
        raise ConfigError("llama.cpp computes this model otherwise", who="gguf-export", why=why)
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    names = [
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings",
    ]  # fmt: skip
    return {**{n: getattr(c, n) for n in names}, "head_dim": head, "rope_parameters": dict(c.rope_parameters)}


def _arrays(model: Any, fields: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    """Name and float32 numbers of each tensor, a tied head once, then rotary factors where there are any."""
    for name, parameter in model.named_parameters():
        yield name, parameter.detach().float().cpu().numpy()
    rope = fields["rope_parameters"]
    if rope.get("rope_type", "default") in ("default", "llama3"):
        head = fields["head_dim"]
        plain = rope["rope_theta"] ** -(np.arange(0, head, 2, dtype=np.float64) / head)
        factors = plain / model.model.rotary_emb.inv_freq.double().cpu().numpy()
        if np.abs(factors - 1).max() > 1e-5:  # float32 frequencies are known to 1e-6
            yield FACTORS, factors.astype(np.float32)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata pair, in the type that llama.cpp looks for."""
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        adders[type(value)](key, value)


__all__ = ["GgufExporter", "fields_of_module"]
