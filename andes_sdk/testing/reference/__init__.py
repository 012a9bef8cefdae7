"""The smallest plugin of every kind: what the kit puts around a plugin under test, and what the kit is tested with.

Training stages and formats are missing: those lie with andes-training and andes-packing.
All are random and useless as models. They need nothing but the core, so a third party can test an encoder without
installing a projector or a language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, gt

from andes_sdk import hookimpl

if TYPE_CHECKING:
    from andes_sdk import types
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.plan import Plan

__all__ = [
    "REFERENCES", "ReferenceBackend", "ReferenceBenchmark", "ReferenceCompressor", "ReferenceDecoder",
    "ReferenceEncoder", "ReferenceExporter", "ReferenceFilter", "ReferenceLanguageModel",
    "ReferenceModality", "ReferenceModules", "ReferencePolicy", "ReferenceProjector", "ReferenceReward",
    "ReferenceTokenizer",
    "ReferenceWatcher",
]  # fmt: skip


@frozen(eq=False, kw_only=True)
class ReferenceEncoder:
    """One attention block over patches. Shortest use: `Pipeline.from_plugins([ReferenceEncoder(), ...])`."""

    contract = "1.1"

    width: int = field(default=16, validator=gt(0), metadata={"help": "features per patch, a multiple of 8"})
    patch_size: int = field(default=8, validator=gt(0), metadata={"help": "side of a patch in pixels"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute the block in the backward pass"})

    @hookimpl
    def andes_vision_encoder(self) -> types.VisionEncoder:
        """Random weights."""
        from .modules import Encoder

        return Encoder(self.width, self.patch_size, checkpointing=self.gradient_checkpointing)


@frozen(eq=False, kw_only=True)
class ReferenceProjector:
    """One linear layer over each block. Shortest use: `Pipeline.from_plugins([..., ReferenceProjector()])`."""

    contract = "1.1"

    @hookimpl
    def andes_projector(self, vision: types.VisionSpec, text: types.TextSpec) -> types.Projector:
        """Random weights."""
        from .modules import Projector

        return Projector(vision.width, vision.merge, text.width)


@frozen(eq=False, kw_only=True)
class ReferenceLanguageModel:
    """Two layers with absolute positions. Shortest use: `Pipeline.from_plugins([..., ReferenceLanguageModel()])`."""

    contract = "1.1"

    vocab_size: int = field(default=260, validator=gt(0), metadata={"help": "embeddings"})
    max_positions: int = field(default=4096, validator=gt(0), metadata={"help": "rows a conversation may have"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute layers in the backward pass"})

    @hookimpl
    def andes_language_model(self) -> types.LanguageModel:
        """Random weights."""
        from .modules import LanguageModel

        return LanguageModel(self.vocab_size, self.max_positions, checkpointing=self.gradient_checkpointing)


@frozen(eq=False, kw_only=True)
class ReferenceTokenizer:
    """A token per byte of UTF-8. Shortest use: `Pipeline.from_plugins([..., ReferenceTokenizer()])`."""

    contract = "1.1"

    kinds: list[str] = field(factory=list, metadata={"help": "modalities that have a placeholder, beside image"})

    @hookimpl
    def andes_tokenizer(self, folder: Path | None) -> types.Tokenizer:
        """The same one whatever the folder holds."""
        from .text import ByteTokenizer

        return ByteTokenizer(self.kinds)


@frozen(eq=False, kw_only=True)
class ReferenceModality:
    """Samples of sound, a row per frame. Shortest use: `Pipeline.from_plugins([..., ReferenceModality()])`."""

    contract = "1.1"
    examples: ClassVar[Mapping[str, Sequence[Any]]] = {"audio": ([0.5, -0.5] * 200, [0.25], [0.0, 0.125, 1.0] * 100)}

    frame: int = field(default=160, validator=gt(0), metadata={"help": "samples that become a row"})

    @hookimpl
    def andes_modalities(self) -> Sequence[types.Modality]:
        """One sense, "audio"."""
        from .senses import Audio

        return [Audio(self.frame)]


@frozen(eq=False, kw_only=True)
class ReferencePolicy:
    """Keep the first rows and the most recent. Shortest use: `Pipeline.from_plugins([..., ReferencePolicy()])`."""

    contract = "1.1"

    rows: int = field(default=24, validator=ge(2), metadata={"help": "rows per head to keep"})
    first: int = field(default=2, validator=ge(0), metadata={"help": "of these, rows from the start of the prompt"})

    @hookimpl
    def andes_cache_policy(self, model: VisionLanguageModel) -> types.CachePolicy:
        """The policy of one pipeline."""
        from .running import Recent

        heads = model.text.layers * model.text.kv_heads
        return Recent(self.rows, min(self.first, self.rows - 1), heads)


@frozen(eq=False, kw_only=True)
class ReferenceDecoder:
    """Guess from the prompt, verify. Shortest use: `Pipeline.from_plugins([..., ReferenceDecoder()])`."""

    contract = "1.1"

    depth: int = field(default=3, validator=gt(0), metadata={"help": "tokens guessed at a time"})

    @hookimpl
    def andes_decoder(self, model: VisionLanguageModel) -> types.Decoder:
        """The decoder of one pipeline."""
        from .running import PromptLookup

        return PromptLookup(self.depth)


@frozen(eq=False, kw_only=True)
class ReferenceModules:
    """Add a head that nothing asks yet. Shortest use: `Pipeline.from_plugins([..., ReferenceModules()])`."""

    contract = "1.1"

    @hookimpl
    def andes_modules(self, model: VisionLanguageModel) -> Sequence[str]:
        """A checkpoint may lack the head."""
        from torch import nn

        model.draft = nn.Linear(model.text.width, model.text.vocab_size, bias=False)
        return ["draft."]


@frozen(eq=False, kw_only=True)
class ReferenceCompressor:
    """Round weights to few bits. Shortest use: `Pipeline.from_plugins([..., ReferenceCompressor()])`."""

    contract = "1.1"

    bits: int = field(default=8, validator=ge(2), metadata={"help": "bits per weight"})

    @hookimpl
    def andes_compressors(self) -> Sequence[types.Compressor]:
        """One compressor."""
        from .collections import Rounding

        return [Rounding(self.bits)]


@frozen(eq=False, kw_only=True)
class ReferenceBackend:
    """The torch backend by another name. Shortest use: `Pipeline.from_plugins([..., ReferenceBackend()])`."""

    contract = "1.1"

    @hookimpl
    def andes_backends(self) -> Sequence[types.Backend]:
        """One backend."""
        from .running import Renamed

        return [Renamed()]


@frozen(eq=False, kw_only=True)
class ReferenceReward:
    """1 for an answer that holds the right one. Shortest use: `Pipeline.from_plugins([..., ReferenceReward()])`."""

    contract = "1.1"

    @hookimpl
    def andes_rewards(self) -> Sequence[types.Reward]:
        """One reward."""
        from .collections import Contains

        return [Contains()]


@frozen(eq=False, kw_only=True)
class ReferenceFilter:
    """Drop samples without an answer. Shortest use: `Pipeline.from_plugins([..., ReferenceFilter()])`."""

    contract = "1.1"

    @hookimpl
    def andes_data_filters(self) -> Sequence[types.DataFilter]:
        """One filter."""
        from .collections import NoEmptyAnswers

        return [NoEmptyAnswers()]


@frozen(eq=False, kw_only=True)
class ReferenceBenchmark:
    """Share of questions that get any answer. Shortest use: `Pipeline.from_plugins([..., ReferenceBenchmark()])`."""

    contract = "1.1"

    @hookimpl
    def andes_benchmarks(self) -> Sequence[types.Benchmark]:
        """One benchmark."""
        from .collections import Answers

        return [Answers()]


@frozen(eq=False, kw_only=True)
class ReferenceExporter:
    """Shapes of all tensors as JSON. Shortest use: `Pipeline.from_plugins([..., ReferenceExporter()])`."""

    contract = "1.1"

    @hookimpl
    def andes_exporters(self) -> Sequence[types.Exporter]:
        """One exporter."""
        from .collections import Shapes

        return [Shapes()]


@frozen(eq=False, kw_only=True)
class ReferenceWatcher:
    """Look and listen, change nothing. Shortest use: `Pipeline.from_plugins([..., ReferenceWatcher()])`."""

    contract = "1.1"

    @hookimpl
    def andes_check(self, plan: Plan) -> Sequence[str]:
        """Refuses a pipeline that watches nothing."""
        return [] if len(plan.plugins) > 1 else ["has nothing to watch: add other plugins"]

    @hookimpl
    def andes_explain(self, plan: Plan) -> Mapping[str, str]:
        """How many plugins it watches."""
        return {"watched plugins": str(len(plan.plugins) - 1)}

    @hookimpl
    def andes_event(self, event: types.Event) -> None:
        """Takes note of nothing."""


REFERENCES: dict[str, Any] = {
    "vision_encoder": ReferenceEncoder,
    "projector": ReferenceProjector,
    "language_model": ReferenceLanguageModel,
    "tokenizer": ReferenceTokenizer,
}
"""Slot without a default -> the plugin that fills it when the one under test does not."""
