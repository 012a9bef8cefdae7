"""From a decoder in torch to packed matrices and norms at known addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

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
    from torch import Tensor

    from andes_sdk.model import VisionLanguageModel

BIASED = ROLES[:3]
"""Linear layers that may have biases: q, k and v."""
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


class DecoderPlan(TypedDict):
    """A decoder of pre-norm layers: x + o(attention(q x, k x, v x)), then x + down(activation(gate x) * up x).

    All norms are RMS norms with `eps`. activation: "silu". inner: outputs of `gate`. biased: linear layers of a decoder
    layer that have biases, such as "self_attn.q_proj". head_norms: whether each head of q and k has a norm,
    "self_attn.q_norm" and "self_attn.k_norm". scale: what scores are multiplied with. rotary: (T,) positions -> cosines
    and sines (T, d / 2), float32, which turn feature i with i + d / 2; None where they depend on more than positions.

    Weights have the names that transformers gives them in a Llama, a Qwen2 or a Qwen3.
    """

    inner: int
    eps: float
    activation: str
    biased: Sequence[str]
    head_norms: bool
    scale: float
    rotary: Callable[[Tensor], tuple[Tensor, Tensor]] | None


@runtime_checkable
class DescribedDecoder(Protocol):
    """A language model that can be compiled."""

    def blueprint(self) -> DecoderPlan:
        """Its structure."""


@frozen(eq=False)
class PackedModel:
    """A decoder whose matrices are packed.

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


def plan_of(model: VisionLanguageModel) -> DecoderPlan:
    """The description of a language model this backend can run.

    Raises:
        BackendUnavailable: it describes nothing, has parts that the compiled step lacks, or sizes that do not fill
            vectors of sixteen.
    """
    language, spec = model.language_model, model.text
    plan = language.blueprint() if isinstance(language, DescribedDecoder) else None
    why = ["it has no blueprint() that says what it computes"] if plan is None else obstacles(plan, spec.head_dim)
    why += [
        f"{n} is {v}, not a multiple of 16" for n, v in (("width", spec.width), ("head_dim", spec.head_dim)) if v % 16
    ]
    if why or plan is None:
        raise BackendUnavailable(
            f"cannot run {type(language).__name__}", who="numba", why="; ".join(why), fix="use backend='torch'"
        )
    return plan


def obstacles(plan: DecoderPlan, head: int) -> list[str]:
    """Parts of a decoder with heads of so many features that the compiled step lacks."""
    why = []
    if plan["activation"] != "silu":
        why.append(f"its activation is {plan['activation']!r}, not 'silu'")
    if other := sorted({*plan["biased"]} - {*BIASED}):
        why.append(f"{', '.join(other)}: there are no biases but those of q, k and v")
    if plan["rotary"] is None:
        why.append("its positions depend on the length of the text")
    if abs(plan["scale"] * head**0.5 - 1) > 1e-6:
        why.append(f"its scores are multiplied with {plan['scale']:g}, not with head_dim ** -0.5")
    return why


def sizes_of(model: VisionLanguageModel) -> Sizes:
    """Sizes of a model this backend can run.

    Raises:
        BackendUnavailable: as `plan_of`.
    """
    spec = model.text
    return Sizes(
        layers=spec.layers, width=spec.width, q_heads=spec.query_heads, kv_heads=spec.kv_heads, head=spec.head_dim,
        inner=plan_of(model)["inner"], vocab=spec.vocab_size,
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
    sizes, plan = sizes_of(model), plan_of(model)
    every = range(sizes.layers)
    layers = [[matrix(f"model.layers.{n}.{role}.weight") for role in ROLES] for n in every]
    head = matrix(HEAD)

    def norms(*names: str) -> np.ndarray:
        return np.array([[array(f"model.layers.{n}.{name}.weight") for name in names] for n in every], np.float32)

    def biases(n: int) -> np.ndarray:
        lengths = [sizes.head * heads for heads in (sizes.q_heads, sizes.kv_heads, sizes.kv_heads)]
        parts = [
            array(f"model.layers.{n}.{role}.bias") if role in plan["biased"] else np.zeros(length, np.float32)
            for role, length in zip(BIASED, lengths, strict=True)
        ]
        return np.concatenate(parts)

    empty = np.zeros((sizes.layers, 2, 0), np.float32)

    weights = Weights(
        products=np.array([[(m.ctypes.data, len(m)) for m in seven] for seven in layers], np.int64),
        sizes=np.array([m.shape[1] for m in layers[0]], np.int64),
        head=np.array([[head.ctypes.data, len(head)]], np.int64),
        head_size=np.int64(head.shape[1]),
        norms=norms("input_layernorm", "post_attention_layernorm"),
        head_norms=norms("self_attn.q_norm", "self_attn.k_norm") if plan["head_norms"] else empty,
        biases=np.array([biases(n) for n in every], np.float32) if plan["biased"] else empty[:, 0],
        last=np.array(array("model.norm.weight"), np.float32),
        eps=np.float32(plan["eps"]),
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
        self._tables = plan_of(model)["rotary"]
        self._cos = self._sin = np.zeros((0, 0), np.float32)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(T,) positions -> (T, d / 2) cosines and sines."""
        last = int(positions.max())
        if last >= len(self._cos) and self._tables is not None:
            every = torch.arange(max(256, 1 << (last + 1).bit_length()))
            self._cos, self._sin = (t.contiguous().numpy() for t in self._tables(every))
        return self._cos[positions], self._sin[positions]
