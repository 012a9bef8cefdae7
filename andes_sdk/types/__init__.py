"""What plugins build and what meets at the seams: small Protocols, and the plain data they exchange.

Shapes: N patches, T rows (tokens), V vocabulary, D language width, Dv vision width, Hq/Hkv heads, d head size.
Nothing here imports torch at run time.
"""

from __future__ import annotations

from .backends import AdaptableCompiled, Backend, Compiled, PackedBackend
from .collections import Benchmark, Compressor, DataFilter, Exporter, Reward, TableFilter
from .model import Model
from .modules import Attend, Grid, LanguageModel, Projector, TextSpec, VisionEncoder, VisionSpec
from .sessions import Adapter, CachePolicy, Decoder, Inputs, Layer, LowRank, Sampler, Session, SessionStats
from .storage import Format, Packed, PublishedLayout
from .text import Files, Rendered, Tokenizer, Turn
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
    "AdaptableCompiled", "Adapter", "Attend", "Backend", "Benchmark", "CachePolicy", "Compiled", "Compressor",
    "ConversationStage", "DataFilter", "Decoder", "Event", "Exporter", "FeedRun", "FeedingStage", "Files", "Format",
    "Grid", "Inputs", "LanguageModel", "Layer", "LowRank", "Model", "ModelChange", "Packed", "PackedBackend",
    "Position", "Projector", "PublishedLayout", "Rendered", "Reward", "Sampler", "Session", "SessionStats",
    "StatefulStage", "SteppingStage", "TableFilter", "TextSpec", "Tokenizer", "TrainingStage", "Turn", "VisionEncoder",
    "VisionSpec",
]  # fmt: skip
