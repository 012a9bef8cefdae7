"""The assembled model, as hooks, stages and backends see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .media import Media
    from .modules import Attend, LanguageModel, TextSpec, VisionSpec
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

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a prompt may hold beside text: "image", and the names of other modalities."""

    def encode(self, media: Mapping[str, Media]) -> dict[str, Tensor]:
        """Rows (M, D) for the language model of each kind, in the order of `kinds`.

        Raises:
            InputError: a kind that the model does not know.
        """

    def embed(self, ids: Tensor, rows: Mapping[str, Tensor] | None = None) -> Tensor:
        """(T,) ids and (M, D) rows of each kind -> (T, D): rows take the place of their kind's placeholders, in order.

        Raises:
            InputError: more or fewer rows than placeholders, or an unknown kind.
        """

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """(T, D) at (T,) positions -> (T, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""

    def parameter_count(self) -> int:
        """Parameters, tied ones counted once."""

    def parts(self) -> dict[str, nn.Module]:
        """The three modules by their published name, and those of other senses as `modalities.<name>`."""

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
