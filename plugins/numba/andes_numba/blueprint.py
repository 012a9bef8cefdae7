"""What this backend must know of an encoder or a projector to compile it, and the way from there to packed weights.

A module that can be compiled has a method `blueprint()` that returns plain data, keyed as below. Tensors may be of any
floating type; a linear layer is a pair (weight (out, in), bias (out,) or None), a norm a pair (weight, bias or None).
A module without the method, or of a shape that does not fit, stays on torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
from andes_packing.formats import LANES, find
from attrs import frozen

from .vision import Shape, Tower
from .vision_rows import GELU, GELU_TANH, LAYER, RMS, SWIGLU
from .weights import aligned

if TYPE_CHECKING:
    from torch import Tensor

Linear = tuple["Tensor", "Tensor | None"]
Norm = tuple["Tensor", "Tensor | None"]

ACTIVATIONS = {"gelu": GELU, "gelu_tanh": GELU_TANH, "swiglu": SWIGLU}
NORMS = {"layer": LAYER, "rms": RMS}


class BlockPlan(TypedDict):
    """A pre-norm block: x + out(attention(qkv(norm1 x))), then x + down(activation(up(norm2 x))).

    qkv stands for queries, keys and values one above another, each (width, width). With the activation "swiglu" it is
    silu(gate x) * up x.
    """

    norm1: Norm
    qkv: Linear
    out: Linear
    norm2: Norm
    up: Linear
    gate: NotRequired[Linear]
    down: Linear


class EncoderPlan(TypedDict):
    """A vision transformer with full attention inside each image.

    norm: "layer" or "rms", with `eps`. activation: "gelu", "gelu_tanh" or "swiglu". rotary: angles of rows (the first
    quarter of a head's features) and columns (the second) turn feature i with i + head / 2; the base of their
    frequencies, or None. embed: over flattened patches, then `embed_norm` if it is there; positions: (rows, columns) of
    a grid -> (rows * columns, width) in block order, added to the embedding, or None; table: the (side, side, width)
    that `positions` resizes bicubically with half-pixel centres, or None where it does something else. blocks may be
    made one by one as they are asked for: only one at a time is looked at.
    """

    width: int
    heads: int
    norm: str
    eps: float
    activation: str
    rotary: float | None
    embed: Linear
    embed_norm: NotRequired[Norm]
    positions: Callable[[int, int], Tensor] | None
    table: NotRequired[Tensor | None]
    blocks: Iterable[BlockPlan]
    last: Norm


class ProjectorPlan(TypedDict):
    """second(activation(first x)) for x of `merge` ** 2 consecutive rows side by side."""

    merge: int
    first: Linear
    activation: str
    second: Linear


@runtime_checkable
class Described(Protocol):
    """An encoder or a projector that can be compiled."""

    def blueprint(self) -> EncoderPlan | ProjectorPlan:
        """Its structure and weights."""


# ---------------------------------------------------------------- packing


class Packer:
    """Matrices in the numbers of the kernels; `arrays` keeps the memory their addresses point to."""

    def __init__(self, number: str) -> None:
        self.number = number
        self.arrays: list[np.ndarray] = []

    @property
    def nbytes(self) -> int:
        """Bytes of everything packed."""
        return sum(a.nbytes for a in self.arrays)

    def linear(self, layer: Linear | None) -> list[int]:
        """Address, row blocks (a multiple of four), bytes per row block, address of the bias; zeros for None."""
        if layer is None:
            return [0, 0, 0, 0]
        weight, bias = (None if part is None else part.detach().float().numpy() for part in layer)
        assert weight is not None
        rows, columns = weight.shape
        padded = np.zeros((-(-rows // 64) * 64, -(-columns // 128) * 128), np.float32)
        padded[:rows, :columns] = weight
        packed = self._keep(self._pack(padded))
        where = 0
        if bias is not None:
            where = self._keep(np.pad(bias, (0, len(padded) - rows)).astype(np.float32)).ctypes.data
        return [packed.ctypes.data, packed.shape[0], packed.strides[0], where]

    def _pack(self, weight: np.ndarray) -> np.ndarray:
        """(rows, columns) -> (row blocks, bytes)."""
        if self.number == "wide":
            layout = find("w8")
            return layout.pack(layout.quantise(weight, search=False))
        blocks = weight.reshape(-1, LANES, weight.shape[1])
        if self.number == "f32":
            return np.ascontiguousarray(blocks.transpose(0, 2, 1)).reshape(len(blocks), -1)
        bits = blocks.view(np.uint32)
        rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
        pairs = rounded.reshape(len(blocks), LANES, -1, 2).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(pairs).reshape(len(blocks), -1)

    def _keep(self, array: np.ndarray) -> np.ndarray:
        self.arrays.append(aligned(array.view(np.uint8)))
        return self.arrays[-1]


def norm_of(norm: Norm) -> np.ndarray:
    """Weight and bias (2, width), float32."""
    weight, bias = (None if part is None else part.detach().float().numpy() for part in norm)
    assert weight is not None
    return np.stack([weight, np.zeros_like(weight) if bias is None else bias]).astype(np.float32)


@frozen(eq=False)
class PackedEncoder:
    """An encoder ready for the kernels."""

    shape: Shape
    tower: Tower
    pixels: int
    rotary: float | None
    positions: Callable[[int, int], Tensor] | None
    packer: Packer


@frozen(eq=False)
class PackedProjector:
    """A projector ready for the kernels."""

    merge: int
    activation: int
    matrices: np.ndarray
    width: int
    packer: Packer


def obstacle(plan: EncoderPlan) -> str | None:
    """Why the kernels cannot run an encoder, or None."""
    width, heads = plan["width"], plan["heads"]
    if plan["norm"] not in NORMS:
        return f"no norm {plan['norm']!r}"
    if plan["activation"] not in ACTIVATIONS:
        return f"no activation {plan['activation']!r}"
    if width % heads or width // heads % LANES:
        return f"{heads} heads of {width} features: a head must be a multiple of {LANES}"
    return None


def pack_encoder(plan: EncoderPlan, number: str) -> PackedEncoder:
    """Weights in "wide", "bf16" or "f32" numbers.

    Raises:
        CheckpointError: weights that are not finite.
    """
    packer, matrices, norms = Packer(number), [], []
    for block in plan["blocks"]:
        layers = (block["qkv"], block["out"], block["up"], block.get("gate"), block["down"])
        matrices.append([packer.linear(layer) for layer in layers])
        norms.append([norm_of(block["norm1"]), norm_of(block["norm2"])])
    width, heads, rotary = plan["width"], plan["heads"], plan["rotary"]
    shape = Shape(
        layers=len(matrices), width=width, heads=heads, head=width // heads, norm=NORMS[plan["norm"]],
        activation=ACTIVATIONS[plan["activation"]], half=0 if rotary is None else width // heads // 2,
        eps=np.float32(plan["eps"]),
    )  # fmt: skip
    embed_norm = plan.get("embed_norm")
    tower = Tower(
        embed=np.array(packer.linear(plan["embed"]), np.int64),
        matrices=np.array(matrices, np.int64),
        norms=np.array(norms, np.float32),
        embed_norm=np.zeros((0, 2, width), np.float32) if embed_norm is None else norm_of(embed_norm)[None],
        last=norm_of(plan["last"]),
    )
    return PackedEncoder(shape, tower, plan["embed"][0].shape[1], rotary, plan["positions"], packer)


def pack_projector(plan: ProjectorPlan, number: str) -> PackedProjector:
    """As `pack_encoder`."""
    packer = Packer(number)
    matrices = np.array([packer.linear(plan["first"]), packer.linear(plan["second"])], np.int64)
    activation = ACTIVATIONS[plan["activation"]]
    return PackedProjector(plan["merge"], activation, matrices, plan["second"][0].shape[0], packer)
