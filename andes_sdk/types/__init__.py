"""What plugins build and what meets at the seams: small Protocols, and the plain data they exchange.

Shapes: N patches, T rows (tokens), V vocabulary, D language width, Dv vision width, Hq/Hkv heads, d head size.
Nothing here imports torch at run time.
"""

from __future__ import annotations

from .backends import AdaptableCompiled, Backend, Compiled, PackedBackend
from .collections import Benchmark, Compressor, DataFilter, Exporter, Reward, TableFilter
from .media import Media, Modality
from .modules import Attend, Grid, LanguageModel, Projector, Tap, TextSpec, VisionEncoder, VisionSpec
from .sessions import (
    Adapter,
    Cache,
    CachePolicy,
    Constraint,
    Decoder,
    Draft,
    Inputs,
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
from .storage import PublishedLayout
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
    "AdaptableCompiled", "Adapter", "Attend", "Backend", "Benchmark", "Cache", "CachePolicy", "Compiled",
    "Compressor", "Constraint", "ConversationStage", "DataFilter", "Decoder", "Draft", "Event", "Exporter",
    "FeedRun", "FeedingStage", "Files", "Grid", "Inputs", "Keeper", "LanguageModel", "Layer", "Look", "LowRank",
    "Media", "Modality", "ModelChange", "PackedBackend", "Position", "Projector", "Proposal", "PublishedLayout",
    "Rendered", "Reward", "Rows", "Session", "SessionStats", "Slot", "StatefulStage", "SteppingStage", "TableFilter",
    "Tap", "TextSpec", "Tokenizer", "TrainingStage", "Turn", "VisionEncoder", "VisionSpec", "Work",
]  # fmt: skip
