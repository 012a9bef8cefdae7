"""Encoder -> projector -> rows of the language model's input: the composition of the AndesVL report, section 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from andes_sdk.errors import InputError, PluginBroken
from andes_sdk.types import VisionEncoder, VisionSpec

if TYPE_CHECKING:
    from andes_sdk.types import Attend, LanguageModel, Media, Modality, Projector, Tap, TextSpec, Tokenizer


class VisionLanguageModel(nn.Module):
    """A vision encoder, a projector and a language model under the published names.

    State-dict prefixes are `vision_encoder.`, `mlp.` and `language_model.`, as in public AndesVL checkpoints, and
    `modalities.<name>.` for other senses.

    Attributes:
        senses: the modalities beside pictures, by name, whose modules are in `modalities`.
        may_lack: prefixes of weights that a checkpoint may lack; plugins gave them values (`andes_modules`).
        numbers: the hash of the codes, scales and ranges that it was compressed to, or that its file holds; "" of a
            model that was not compressed.
    """

    may_lack: tuple[str, ...] = ()
    numbers: str = ""

    def __init__(
        self,
        encoder: VisionEncoder,
        projector: Projector,
        language_model: LanguageModel,
        tokenizer: Tokenizer,
        senses: Mapping[str, Modality] | None = None,
    ) -> None:
        super().__init__()
        self.senses = dict(senses or {})
        for name in self.senses:
            tokenizer.placeholder(name)  # refuses a modality that no text can place
        built = {name: sense.build(language_model.spec) for name, sense in self.senses.items()}
        slots = {"vision_encoder": encoder, "projector": projector, "language_model": language_model}
        for name, part in {**slots, **built}.items():
            if not isinstance(part, nn.Module):
                what = f"built {type(part).__name__}, not an nn.Module"
                raise PluginBroken(what, who=name, fix="return a torch module")
        self.vision_encoder = cast("nn.Module", encoder)
        self.mlp = cast("nn.Module", projector)
        self.language_model = cast("nn.Module", language_model)
        self.modalities = nn.ModuleDict(cast("dict[str, nn.Module]", built))
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

    @property
    def kinds(self) -> tuple[str, ...]:
        """What a prompt may hold beside text: "image", and the other senses by name."""
        return ("image", *self.senses)

    def encode(self, media: Mapping[str, Media]) -> dict[str, Tensor]:
        """Rows (M, D) for the language model of each kind, always in the order of `kinds`.

        Raises:
            InputError: a kind that the model does not know.
        """
        self._check_kinds(media)
        return {kind: self._rows(kind, media[kind]) for kind in self.kinds if kind in media}

    def _rows(self, kind: str, media: Media) -> Tensor:
        data = media.data.to(self.device, self.dtype if media.data.is_floating_point() else None)
        if kind == "image":
            return cast("Tensor", self.projector(self.vision_encoder(data, media.sizes)))
        return cast("Tensor", self.modalities[kind](data, media.sizes))

    def embed(self, ids: Tensor, rows: Mapping[str, Tensor] | None = None) -> Tensor:
        """(T,) ids and (M, D) rows of each kind -> (T, D): rows take the place of their kind's placeholders, in order.

        Raises:
            InputError: more or fewer rows than placeholders, rows of another width, or an unknown kind.
        """
        rows = rows or {}
        self._check_kinds(rows)
        embeds = self.llm.embed(ids)
        for kind in self.kinds:
            where = ids == self.tokenizer.placeholder(kind)
            wanted, given = int(where.sum()), len(rows.get(kind, ()))
            if wanted != given:
                what = f"{wanted} {kind} tokens in the text, {given} {kind} rows from the encoder"
                raise InputError(what, fix=f"pass every {kind} once")
            if kind in rows:
                if (wide := rows[kind].shape[1]) != embeds.shape[1]:  # scattered, they would be taken number by number
                    raise InputError(f"{kind} rows are {wide} wide, the language model's {embeds.shape[1]}")
                embeds = embeds.masked_scatter(where[:, None], rows[kind].to(embeds.dtype))
        return embeds

    def _check_kinds(self, given: Mapping[str, object]) -> None:
        for kind in given:
            if kind not in self.kinds:
                why, fix = f"it knows {', '.join(self.kinds)}", "add the plugin that brings this modality"
                raise InputError(f"the model has no modality {kind!r}", why=why, fix=fix)

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
        """The three modules by their published name, and those of other senses as `modalities.<name>`."""
        own = {"vision_encoder": self.vision_encoder, "mlp": self.mlp, "language_model": self.language_model}
        return own | {f"modalities.{name}": module for name, module in self.modalities.items()}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype
