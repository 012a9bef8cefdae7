"""Slots that are modules, and the facts that the rest of a pipeline must know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of patches of one image: (H / patch, W / patch)."""


@frozen(kw_only=True)
class VisionSpec:
    """What the rest of the pipeline must know of an encoder.

    Attributes:
        width: Dv, features per patch.
        patch_size: side of a patch in pixels.
        merge: side of the block of patches that lie next to one another in the sequence (2: a 2x2 block).
        mean, std: per-channel normalisation of pixels scaled to [0, 1].
    """

    width: int
    patch_size: int
    merge: int = 2
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@frozen(kw_only=True)
class TextSpec:
    """What the rest of the pipeline must know of a language model."""

    width: int
    vocab_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    max_positions: int


class VisionEncoder(Protocol):
    """An `nn.Module` that turns patches of several images into features, image by image.

    Patches arrive in block order (`andes_sdk.inputs.patches.patchify`): every `merge x merge` block is contiguous.
    Images are packed on the sequence axis; attention must never cross from one to another.
    """

    @property
    def spec(self) -> VisionSpec:
        """Facts for the rest of the pipeline."""

    def __call__(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) normalised pixels, one grid per image -> (N, Dv) in the same order."""


class Projector(Protocol):
    """An `nn.Module` that merges blocks of patches and maps them to the language model's width."""

    def __call__(self, features: Tensor) -> Tensor:
        """(N, Dv) in block order -> (N / merge**2, D)."""


class Attend(Protocol):
    """How rows attend to one another; given by the runtime, called by the language model in each layer.

    A language model computes q, k, v (positions already applied) and leaves masks, packing and the KV store to this.
    """

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (1, Hq, T, d), k and v (1, Hkv, T, d) -> (1, T, Hq, d)."""


class Tap(Protocol):
    """Sees the rows that enter a layer."""

    def __call__(self, layer: int, hidden: Tensor) -> None:
        """(T, D) rows entering `layer`; `spec.layers` stands for the last norm."""


class LanguageModel(Protocol):
    """An `nn.Module`, decoder-only. Rows of any number of sequences come as one packed row axis."""

    @property
    def spec(self) -> TextSpec:
        """Facts for the rest of the pipeline."""

    def embed(self, ids: Tensor) -> Tensor:
        """(T,) token ids -> (T, D)."""

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) embeddings at (T,) positions -> (T, D) after the last norm. `tap` sees what enters each layer."""

    def linears(self) -> Mapping[str, tuple[int, str]]:
        """Linear layers by module name -> (layer, role); roles are q, k, v, o, gate, up, down, or the model's own."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
