"""From the options of the plugin to a decoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .cost import linear
from .decoder import SpeculativeDecoder

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel

    from .drafter import Drafter


class Options(Protocol):
    """What of the plugin's options is needed here."""

    drafter: str
    depth: int
    width: int
    rows: int
    corpus: str
    model: str
    backend: str
    head: str
    adapt: bool
    row_cost: float | None


def build(options: Options, model: VisionLanguageModel) -> SpeculativeDecoder:
    """A decoder for a model.

    Raises:
        ConfigError: a file or model that cannot be used. CheckpointError: a model or head that cannot be read.
    """
    fixed = None if options.row_cost is None else linear(options.row_cost)
    return SpeculativeDecoder(drafter_of(options, model), options.depth, options.adapt, fixed)


def drafter_of(options: Options, model: VisionLanguageModel) -> Drafter:
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
