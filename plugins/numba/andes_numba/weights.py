"""From a Qwen3 in torch to packed matrices and norms at known addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from andes_packing.formats import Format
from attrs import evolve, frozen

from andes_sdk.errors import BackendUnavailable

from .lora import GROUPS, ROLES
from .options import FORMATS
from .simd import Tag
from .sizes import Sizes
from .step import Weights

if TYPE_CHECKING:
    from andes_packing import Artefact

    from andes_sdk.model import VisionLanguageModel

HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"

_FIXED = {"model_type": "qwen3", "hidden_act": "silu", "attention_bias": False}
"""What the compiled step takes for granted of a configuration."""


@frozen(eq=False)
class PackedModel:
    """A Qwen3 whose matrices are packed.

    Attributes:
        formats: of q-k-v, output, gate-up, down and head.
        arrays: keep the memory, or the map of a file, that `weights` points to.
        table: format and packed bytes of the embedding, where a kernel can look tokens up in it.
        check: raises CheckpointError where the file behind the arrays was changed.
    """

    sizes: Sizes
    weights: Weights
    formats: tuple[str, ...]
    arrays: tuple[Any, ...]
    table: tuple[Tag, np.ndarray] | None = None
    check: Callable[[], None] = lambda: None

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
    """Quantise the language model's matrices to two formats, beside the float ones.

    Raises:
        BackendUnavailable: as `sizes_of`. CheckpointError: weights that are not finite.
    """
    state = model.language_model.state_dict()

    def array(name: str) -> np.ndarray:
        return state[name].detach().float().numpy()

    def matrix(name: str) -> np.ndarray:
        layout = head if name == HEAD else body
        return aligned(layout.pack(layout.quantise(array(name))))

    formats = (body.name,) * len(GROUPS) + (head.name,)
    return _assembled(model, matrix, array, formats)


def map_model(model: VisionLanguageModel, artefact: Artefact, *, dtype: str) -> PackedModel:
    """The language model's matrices where they lie in an artefact; nothing is copied but norms.

    dtype is that of embeddings: kernels look them up in float32, torch rounds them to others.

    Raises:
        BackendUnavailable: as `sizes_of`, or formats that the compiled step cannot run.
    """
    prefix = "language_model."

    def matrix(name: str) -> np.ndarray:
        return artefact.packed(prefix + name)

    def array(name: str) -> np.ndarray:
        return np.asarray(artefact.array(prefix + name), np.float32)

    packed = _assembled(model, matrix, array, formats_of(artefact, sizes_of(model).layers))
    format_ = artefact.tensors[artefact.header.tied.get(prefix + TABLE, prefix + TABLE)].format
    usable = format_ in FORMATS and dtype == "float32"
    table = (Tag("format", format_), matrix(TABLE)) if usable else None
    return evolve(packed, table=table, check=artefact.file.check)


def formats_of(artefact: Artefact, layers: int) -> tuple[str, ...]:
    """Formats of q-k-v, output, gate-up, down and head.

    Raises:
        BackendUnavailable: no kernel for one of them, or more than one where one is needed.
    """
    entries, tied = artefact.tensors, artefact.header.tied
    names = [[f"model.layers.{n}.{ROLES[r]}.weight" for n in range(layers) for r in range(*g)] for g in GROUPS]
    chosen, why = [], []
    for group in [*names, [HEAD]]:
        whole = [f"language_model.{name}" for name in group]
        found = sorted({entries[tied.get(name, name)].format for name in whole})
        what = " and ".join(dict.fromkeys(n.rpartition(".layers.")[2].partition(".")[2] or n for n in group))
        if len(found) > 1:
            why.append(f"{what} are in {', '.join(found)}, and need one format")
        elif found[0] not in FORMATS:
            why.append(f"{what}: there is no kernel for {found[0]}")
        chosen.append(found[0])
    if why:
        fix = 'use backend="torch", or pack it with one of ' + ", ".join(FORMATS)
        raise BackendUnavailable(f"cannot run {artefact.path.name}", who="numba", why="; ".join(why), fix=fix)
    return tuple(chosen)


def _assembled(
    model: VisionLanguageModel,
    matrix: Callable[[str], np.ndarray],
    array: Callable[[str], np.ndarray],
    formats: tuple[str, ...],
) -> PackedModel:
    """Matrices by name, as (row blocks, bytes), and norms -> what the compiled step takes."""
    sizes = sizes_of(model)
    every = range(sizes.layers)
    layers = [[matrix(f"model.layers.{n}.{role}.weight") for role in ROLES] for n in every]
    head = matrix(HEAD)

    def norms(*names: str) -> np.ndarray:
        return np.array([[array(f"model.layers.{n}.{name}.weight") for name in names] for n in every], np.float32)

    weights = Weights(
        products=np.array([[(m.ctypes.data, len(m)) for m in seven] for seven in layers], np.int64),
        sizes=np.array([m.shape[1] for m in layers[0]], np.int64),
        head=np.array([[head.ctypes.data, len(head)]], np.int64),
        head_size=np.int64(head.shape[1]),
        norms=norms("input_layernorm", "post_attention_layernorm"),
        head_norms=norms("self_attn.q_norm", "self_attn.k_norm"),
        last=np.array(array("model.norm.weight"), np.float32),
        eps=np.float32(model.language_model.config.rms_norm_eps),  # type: ignore[union-attr, arg-type]
    )
    return PackedModel(sizes, weights, formats, (*(m for seven in layers for m in seven), head))


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
