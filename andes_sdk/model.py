"""Encoder -> projector -> rows of the language model's input: the composition of the AndesVL report, section 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from andes_sdk.errors import InputError, PluginBroken

if TYPE_CHECKING:
    from andes_sdk.types import (
        Attend,
        Grid,
        LanguageModel,
        Projector,
        Tap,
        TextSpec,
        Tokenizer,
        VisionEncoder,
        VisionSpec,
    )


class VisionLanguageModel(nn.Module):
    """A vision encoder, a projector and a language model under the published names.

    State-dict prefixes are `vision_encoder.`, `mlp.` and `language_model.`, as in public AndesVL checkpoints.

    Attributes:
        may_lack: prefixes of weights that a checkpoint may lack; plugins gave them values (`andes_modules`).
        numbers: the hash of the codes, scales and ranges that it was compressed to, or that its artefact holds; "" of
            a model that was not compressed.
    """

    may_lack: tuple[str, ...] = ()
    numbers: str = ""

    def __init__(
        self, encoder: VisionEncoder, projector: Projector, language_model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        super().__init__()
        for name, part in (("vision_encoder", encoder), ("projector", projector), ("language_model", language_model)):
            if not isinstance(part, nn.Module):
                raise PluginBroken(
                    f"built {type(part).__name__}, not an nn.Module", who=name, fix="return a torch module"
                )
        self.vision_encoder = cast("nn.Module", encoder)
        self.mlp = cast("nn.Module", projector)
        self.language_model = cast("nn.Module", language_model)
        self.tokenizer = tokenizer

    @property
    def vision(self) -> VisionSpec:
        """Facts about the encoder."""
        return cast("VisionEncoder", self.vision_encoder).spec

    @property
    def text(self) -> TextSpec:
        """Facts about the language model."""
        return cast("LanguageModel", self.language_model).spec

    @property
    def llm(self) -> LanguageModel:
        """The language model, typed as its protocol."""
        return cast("LanguageModel", self.language_model)

    @property
    def projector(self) -> nn.Module:
        """The projector; as a submodule it is `mlp`, the published name of its tensors."""
        return self.mlp

    def encode_images(self, patches: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(N, 3*p*p) patches of packed images -> (N / merge**2, D) rows for the language model."""
        return cast("Tensor", self.projector(self.vision_encoder(patches, grids)))

    def embed(self, ids: Tensor, images: Tensor | None) -> Tensor:
        """(T,) ids and (M, D) image rows -> (T, D); image rows replace the embeddings at image tokens, in order."""
        rows = self.llm.embed(ids)
        where = ids == self.tokenizer.image_token
        wanted = int(where.sum())
        given = 0 if images is None else len(images)
        if wanted != given:
            raise InputError(
                f"{wanted} image tokens in the text, {given} image rows from the encoder", fix="pass every image once"
            )
        if images is None:
            return rows
        return rows.masked_scatter(where[:, None], images.to(rows.dtype))

    def hidden_states(self, embeds: Tensor, positions: Tensor, attend: Attend, tap: Tap | None = None) -> Tensor:
        """(T, D) at (T,) positions -> (T, D). `tap` sees what enters each layer."""
        return self.llm.hidden_states(embeds, positions, attend, tap)

    def logits(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, V)."""
        return self.llm.logits(hidden)

    def parameter_count(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def parts(self) -> dict[str, nn.Module]:
        """The three modules by their published name."""
        return {"vision_encoder": self.vision_encoder, "mlp": self.mlp, "language_model": self.language_model}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype
