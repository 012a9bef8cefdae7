"""From a Qwen3 in torch to packed matrices and norms at known addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from attrs import frozen

from andes_sdk.errors import BackendUnavailable
from andes_sdk.formats import LANES, Format

from .step import Sizes, Weights

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

_FIXED = {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False}
"""What the compiled step takes for granted of a configuration."""


@frozen(eq=False)
class PackedModel:
    """A Qwen3 whose matrices are packed. `arrays` keeps the memory that `weights` points to."""

    sizes: Sizes
    weights: Weights
    arrays: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        return sum(a.nbytes for a in self.arrays)


def sizes_of(model: VisionLanguageModel) -> Sizes:
    """Sizes of a model this backend can run.

    Raises:
        BackendUnavailable: it is no Qwen3, or has sizes that do not fill vectors of sixteen.
    """
    config = getattr(model.language_model, "config", None)
    found = {name: getattr(config, name, None) for name in _FIXED}
    why = [f"{name} is {found[name]!r}, not {value!r}" for name, value in _FIXED.items() if found[name] != value]
    kind = getattr(getattr(getattr(model.language_model, "model", None), "rotary_emb", None), "rope_type", "default")
    if kind == "dynamic" or kind == "longrope":
        why.append(f"positions of the kind {kind!r} depend on the length of the text")
    spec = model.text
    why += [
        f"{n} is {v}, not a multiple of 16" for n, v in (("width", spec.width), ("head_dim", spec.head_dim)) if v % 16
    ]
    if why or config is None:
        raise BackendUnavailable(
            f"cannot run {type(model.language_model).__name__}",
            who="numba",
            why="; ".join(why),
            fix="use backend='torch'",
        )
    return Sizes(
        layers=spec.layers, width=spec.width, q_heads=spec.query_heads, kv_heads=spec.kv_heads, head=spec.head_dim,
        inner=config.intermediate_size, vocab=spec.vocab_size,
    )  # fmt: skip


def pack_model(model: VisionLanguageModel, body: Format, head: Format) -> PackedModel:
    """Quantise the language model's matrices to two formats, and lay them out for the compiled step.

    Raises:
        BackendUnavailable: as `sizes_of`. CheckpointError: weights that are not finite.
    """
    sizes = sizes_of(model)
    state = {name: value.detach() for name, value in model.language_model.state_dict().items()}

    def matrix(name: str) -> np.ndarray:
        return state[name].float().numpy()

    layers = []
    for n in range(sizes.layers):
        at = f"model.layers.{n}."
        qkv = np.concatenate([matrix(f"{at}self_attn.{p}_proj.weight") for p in "qkv"])
        pair = [matrix(f"{at}mlp.{p}_proj.weight") for p in ("gate", "up")]
        four = (qkv, matrix(f"{at}self_attn.o_proj.weight"), _alternate(*pair), matrix(f"{at}mlp.down_proj.weight"))
        layers.append([_packed(m, body) for m in four])
    top = _packed(matrix("lm_head.weight"), head)

    def norms(*names: str) -> np.ndarray:
        each = [[matrix(f"model.layers.{n}.{name}.weight") for name in names] for n in range(sizes.layers)]
        return np.array(each, np.float32)

    return assemble(
        sizes, layers, top, norms("input_layernorm", "post_attention_layernorm"),
        norms("self_attn.q_norm", "self_attn.k_norm"), matrix("model.norm.weight").copy(),
        float(model.language_model.config.rms_norm_eps),
    )  # fmt: skip


def assemble(
    sizes: Sizes, layers: list[list[np.ndarray]], head: np.ndarray, norms: np.ndarray, head_norms: np.ndarray,
    last: np.ndarray, eps: float,
) -> PackedModel:  # fmt: skip
    """Packed matrices (row blocks, bytes), four a layer, the head, and norms -> what the compiled step takes."""
    weights = Weights(
        products=np.array([[m.ctypes.data for m in four] for four in layers], np.int64),
        blocks=np.array([m.shape[0] for m in layers[0]], np.int64),
        block_bytes=np.array([m.shape[1] for m in layers[0]], np.int64),
        head=np.array([head.ctypes.data, *head.shape], np.int64),
        norms=norms,
        head_norms=head_norms,
        last=last,
        eps=np.float32(eps),
    )
    return PackedModel(sizes, weights, (*(m for four in layers for m in four), head))


def _alternate(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Two (inner, D) matrices -> one whose row blocks are of the first and of the second in turn."""
    blocks = -(-len(gate) // LANES)
    both = np.zeros((blocks, 2, LANES, gate.shape[1]), np.float32)
    for n, one in enumerate((gate, up)):
        padded = np.pad(one, ((0, blocks * LANES - len(one)), (0, 0)))
        both[:, n] = padded.reshape(blocks, LANES, -1)
    return both.reshape(2 * blocks * LANES, -1)


def _packed(weight: np.ndarray, layout: Format) -> np.ndarray:
    return aligned(layout.pack(layout.quantise(weight)))


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].reshape(array.shape)
    copy[:] = array
    return copy


class Rotary:
    """Cosines and sines of the model's rotary embedding, computed by torch and kept for positions seen so far."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self._embedding = model.language_model.model.rotary_emb  # type: ignore[union-attr]
        self._cos = self._sin = np.zeros((0, 0), np.float32)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) positions -> (T, d / 2) cosines and sines."""
        last = int(positions.max())
        if last >= len(self._cos):
            every = torch.arange(max(256, 1 << (last + 1).bit_length()))
            tables = self._embedding(torch.zeros(1, dtype=torch.float32), every[None])
            half = tables[0].shape[-1] // 2
            self._cos, self._sin = (t[0, :, :half].contiguous().numpy() for t in tables)
        return self._cos[positions], self._sin[positions]
