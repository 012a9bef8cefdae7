"""From the options of the plugin to a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .corpus import read_corpus
from .cost import linear
from .decoder import SpeculativeDecoder
from .suffix import SuffixDrafter

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

    from .drafter import Drafter


def build(options: Any, model: VisionLanguageModel) -> SpeculativeDecoder:
    """A decoder for a model; `options` is the plugin `Speculative`, which this file cannot name: it is named by it.

    Raises:
        ConfigError: a file or model that cannot be used. CheckpointError: a model or head that cannot be read.
    """
    fixed = None if options.row_cost is None else linear(options.row_cost)
    drafter = drafter_of(options, model)
    copies = suffix_of(options, model) if options.matched and not drafter.free else None
    return SpeculativeDecoder(drafter, options.depth, options.adapt, fixed, copies=copies, matched=options.matched)


def suffix_of(options: Any, model: VisionLanguageModel) -> SuffixDrafter:
    """What looks back in the text, and in a corpus."""
    corpus = read_corpus(options.corpus, model.tokenizer) if options.corpus else None
    return SuffixDrafter(options.width, options.rows, corpus)


def drafter_of(options: Any, model: VisionLanguageModel) -> Drafter:
    """The drafter that the options name."""
    if options.drafter == "model":
        from andes_sdk.pipeline import Pipeline

        from .model import ModelDrafter

        small = Pipeline.from_pretrained(options.model, backend=options.backend or None)
        return ModelDrafter.of(small, model.tokenizer, model.vision)
    if options.drafter in ("eagle3", "block"):
        from .block_drafter import BlockDrafter
        from .head_drafter import HeadDrafter
        from .heads import load_head

        head = load_head(Path(options.head), model, options.drafter)
        kind = HeadDrafter if options.drafter == "eagle3" else BlockDrafter
        return kind(head, model, options.width)
    return suffix_of(options, model)
