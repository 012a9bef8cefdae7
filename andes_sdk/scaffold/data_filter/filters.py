"""Samples come as a stream and leave as one: every sample is passed on, those that are dropped with a reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import frozen


@frozen
class Worthwhile:
    """Drops samples with too short an answer, and samples that occurred before."""

    shortest: int
    name = "example"

    def apply(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Yield (sample, None) to keep it or (sample, reason) to drop it; memory is 32 bytes per different sample."""
        seen: set[bytes] = set()
        for sample in samples:
            key = hashlib.sha256(json.dumps(sample, sort_keys=True, default=str).encode()).digest()
            reason = "occurred before" if key in seen else self.fault(sample)
            seen.add(key)
            yield sample, reason

    def fault(self, sample: Mapping[str, Any]) -> str | None:
        """Why the answers of a sample are not worth learning, or None."""
        conversations = sample.get("conversations") or [sample.get("messages") or []]
        answers = [m.get("content") for c in conversations for m in c if m.get("role") == "assistant"]
        if not answers:
            return "has no answer"
        short = min(len(text(a).strip()) for a in answers)
        return f"an answer has {short} characters, fewer than {self.shortest}" if short < self.shortest else None


def text(content: Any) -> str:
    """The text of a message, whether it is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())
