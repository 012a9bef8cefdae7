"""What the filters of this package have in common."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import imagehash

from andes_curation.references import pictures
from andes_sdk.errors import InputError
from andes_sdk.inputs.images import load_image


class Table(ABC):
    """A filter in two steps that can be used as a plain one."""

    waits = False

    @abstractmethod
    def describe(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        """Facts of one sample."""

    @abstractmethod
    def decide(self, facts: Sequence[Mapping[str, Any]]) -> Sequence[str | None]:
        """Reasons to drop."""

    def apply(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Both steps at once, with all samples in memory."""
        held = list(samples)
        yield from zip(held, self.decide([self.describe(s) for s in held]), strict=True)


def digest(text: str) -> str:
    """Short name of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def perceptual_hashes(sample: Mapping[str, Any]) -> list[str]:
    """64-bit DCT hashes (pHash) of a sample's pictures; "" for one that cannot be loaded."""
    return [_hash(source) for source in pictures(sample)]


def _hash(source: Any) -> str:
    try:
        return str(imagehash.phash(load_image(source)))
    except InputError:
        return ""


def far(one: str, other: str) -> int:
    """Bits in which two perceptual hashes differ; 65 if one is missing."""
    return (int(one, 16) ^ int(other, 16)).bit_count() if one and other else 65
