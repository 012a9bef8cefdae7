"""From the options of the plugin to a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost import linear
from .decoder import SpeculativeDecoder

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

    from .drafter import Drafter


def build(options: Any, model: VisionLanguageModel) -> SpeculativeDecoder:
    """A decoder for a model; `options` is the plugin `Speculative`, which this file cannot name: it is named by it.

    Raises:
        ConfigError: a file or model that cannot be used. CheckpointError: a model or head that cannot be read.
    """
    fixed = None if options.row_cost is None else linear(options.row_cost)
    return SpeculativeDecoder(drafter_of(options, model), options.depth, options.adapt, fixed)


def drafter_of(options: Any, model: VisionLanguageModel) -> Drafter:
    """The drafter that the options name."""
    if options.drafter == "model":
        from andes_sdk.pipeline import Pipeline

        from .model import ModelDrafter

        small = Pipeline.from_pretrained(options.model, backend=options.backend or None)
        return ModelDrafter.of(small, model.tokenizer, model.vision)
    if options.drafter == "eagle3":
        from .head_drafter import HeadDrafter
        from .heads import load_head

        return HeadDrafter(load_head(Path(options.head), model), model, options.width)
    from .corpus import read_corpus
    from .suffix import SuffixDrafter

    corpus = read_corpus(options.corpus, model.tokenizer) if options.corpus else None
    return SuffixDrafter(options.width, options.rows, corpus)
