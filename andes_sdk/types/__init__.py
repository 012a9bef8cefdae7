"""What plugins build, and what they exchange: small Protocols and plain data.

A class that has the methods of a Protocol satisfies it; nothing has to be inherited. Nothing here imports torch at run
time.

Letters in shapes: N patches, T rows (tokens), V vocabulary, d size of a head. D is the width of the language model, Dv
that of the vision encoder. Hq counts query heads, Hkv KV heads. An arrow leads from what is given to what comes back.
"""

from __future__ import annotations

from .backends import AdaptableCompiled, Backend, Compiled, DeviceBackend, PackedBackend
from .collections import Benchmark, Compressor, DataFilter, Exporter, Reward, TableFilter
from .compression import Codes, Compressed, Quantised, Range
from .media import Media, Modality
from .model import Model
from .modules import Attend, Grid, LanguageModel, Projector, Tap, TextSpec, VisionEncoder, VisionSpec
from .sessions import (
    Adapter,
    Cache,
    CachePolicy,
    Constraint,
    Decoder,
    Draft,
    Inputs,
    JoiningDraft,
    Keeper,
    Layer,
    Look,
    LowRank,
    Proposal,
    Rows,
    Session,
    SessionStats,
    Work,
)  # fmt: skip
from .storage import Format, Packed, PublishedLayout
from .text import Files, Rendered, Slot, Tokenizer, Turn
from .training import (
    ConversationStage,
    Event,
    FeedingStage,
    FeedRun,
    ModelChange,
    Position,
    StatefulStage,
    SteppingStage,
    TrainingStage,
)

__all__ = [
    "AdaptableCompiled", "Adapter", "Attend", "Backend", "Benchmark", "Cache", "CachePolicy", "Codes", "Compiled",
    "Compressed", "Compressor", "Constraint", "ConversationStage", "DataFilter", "Decoder", "DeviceBackend", "Draft",
    "Event", "Exporter", "FeedRun", "FeedingStage", "Files", "Format", "Grid", "Inputs", "JoiningDraft", "Keeper",
    "LanguageModel", "Layer", "Look", "LowRank", "Media", "Modality", "Model", "ModelChange", "Packed", "PackedBackend",
    "Position", "Projector", "Proposal", "PublishedLayout", "Quantised", "Range", "Rendered", "Reward", "Rows",
    "Session", "SessionStats", "Slot", "StatefulStage", "SteppingStage", "TableFilter", "Tap", "TextSpec", "Tokenizer",
    "TrainingStage", "Turn", "VisionEncoder", "VisionSpec", "Work",
]  # fmt: skip
