"""The assembled model, as hooks, stages and backends see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .modules import Attend, Grid, LanguageModel, TextSpec, VisionSpec
    from .text import Tokenizer


class Model(Protocol):
    """Encoder, projector and language model together: an `nn.Module`, built by `andes_sdk.model`.

    Attributes:
        numbers: the hash of the codes, scales and ranges that it was compressed to, or that its file holds; "" of a
            model that was not compressed.
    """

    numbers: str
    vision_encoder: nn.Module
    language_model: nn.Module
    tokenizer: Tokenizer

    @property
    def projector(self) -> nn.Module:
        """The projector, whose tensors have the prefix `mlp.`."""

    @property
    def vision(self) -> VisionSpec:
        """Facts about the encoder."""

    @property
    def text(self) -> TextSpec:
        """Facts about the language model."""

    @property
    def llm(self) -> LanguageModel:
        """The language model, typed as its protocol."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""

    def encode_images(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) patches of packed images -> (N / merge**2, D) rows for the language model."""

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """(T,) ids and (M, D) image rows -> (T, D)."""

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """(T, D) at (T,) positions -> (T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""

    def parameter_count(self) -> int:
        """Parameters, tied ones counted once."""

    def parts(self) -> dict[str, nn.Module]:
        """The three modules by their published name."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any `nn.Module`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any `nn.Module`."""

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As of any `nn.Module`."""

    def modules(self) -> Iterator[nn.Module]:
        """As of any `nn.Module`."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As of any `nn.Module`."""

    def state_dict(self) -> Mapping[str, Any]:
        """As of any `nn.Module`."""
