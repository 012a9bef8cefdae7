"""Reference compressor, reward, data filter, benchmark and exporter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

from andes_sdk.errors import ConfigError
from andes_sdk.files import write_atomically
from andes_sdk.types import Compressed

if TYPE_CHECKING:
    from andes_sdk.types import Model


@frozen
class Rounding:
    """Weights rounded to a symmetric grid per tensor."""

    bits: int
    name: str = "reference-rounding"

    @torch.no_grad()
    def compress(self, model: Model, **options: Any) -> Compressed:
        """Rounds in place -> bits per weight."""
        if options:
            raise ConfigError(f"no option {min(options)!r}", who=self.name, fix="it takes no options")
        top = 2 ** (self.bits - 1) - 1
        for weight in model.parameters():
            step = weight.abs().max().clamp(min=1e-12) / top
            weight.copy_((weight / step).round() * step)
        return Compressed(report={"bits": self.bits})


@frozen
class Contains:
    """Whether the right answer stands in the answer."""

    name: str = "reference-contains"

    def score(self, sample: Mapping[str, Any], answer: str) -> float:
        """1.0 or 0.0."""
        return float(str(sample["answer"]) in answer)


@frozen
class NoEmptyAnswers:
    """Drops samples whose last message is empty."""

    name: str = "reference-no-empty-answers"

    def apply(self, samples: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str | None]]:
        """Every sample, with a reason where it is dropped."""
        for sample in samples:
            yield sample, None if sample["messages"][-1]["content"] else "the answer is empty"


@frozen
class Answers:
    """How many questions get an answer of at least one token."""

    name: str = "reference-answers"

    def run(self, pipeline: Any, *, limit: int | None = None) -> Mapping[str, float]:
        """The share, between 0 and 1."""
        from andes_sdk.runtime.generation import GenerationOptions

        questions = ["What is 2 + 2?", "Say something.", "Name a colour."][:limit]
        answers = [pipeline.generate(q, GenerationOptions(max_tokens=2)) for q in questions]
        return {"answered": sum(bool(a.tokens) for a in answers) / len(questions)}


@frozen
class Shapes:
    """Writes name and shape of every tensor."""

    name: str = "reference-shapes"

    def export(self, pipeline: Any, path: Path) -> Mapping[str, Any]:
        """JSON -> the number of tensors."""
        shapes = {name: list(tensor.shape) for name, tensor in pipeline.model.state_dict().items()}
        write_atomically(path, json.dumps(shapes).encode())
        return {"tensors": len(shapes)}
