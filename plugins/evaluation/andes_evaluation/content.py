"""What decides a model's answers, told by content: a copy of it is the same, another one at its place is not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from andes_sdk.numbers import numbers_of, weights_of

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline


def whom(pipeline: Pipeline, adapter: Path | None) -> list[Any]:
    """The weights, the tokenizer's files, those of an adapter's folder, and the plan, as plain data."""
    packed = pipeline.artefact
    weights = packed.digest if packed else numbers_of(pipeline.model) + weights_of(pipeline.model, exact=True)
    tokenizer = _files(pipeline.weights, ("*token*", "*vocab*", "merges*", "chat_template*"))
    return [weights, tokenizer, _files(adapter, ("adapter_*",)), pipeline.plan.to_dict()]


def hashed(facts: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def _files(folder: Path | None, patterns: Sequence[str]) -> list[list[str]]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()} if folder else ()
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in sorted(found)]
