"""Reference training stage, compressor, reward, data filter, benchmark and exporter."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from andes_training.feed import packed
from andes_training.loss import next_token_loss
from attrs import evolve, frozen
from torch import Tensor

from andes_sdk.errors import TrainingError

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun
    from andes_training.state import Position

    from andes_sdk.model import VisionLanguageModel


@frozen
class Stage:
    """Next-token loss on everything but the encoder."""

    rate: float
    name: str = "reference-stage"

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """The encoder stays frozen."""
        return {"mlp": self.rate, "language_model": self.rate}

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """Mean over supervised tokens."""
        return next_token_loss(model, batch)


@frozen
class OwnStage(Stage):
    """The same loss on lines and batches of its own: a question and its answer, packs that know their number."""

    name: str = "reference-own-stage"

    def conversations(self, entry: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
        """The last question of a conversation and its answer."""
        if "messages" not in entry:
            raise TrainingError("has no messages", fix='write {"messages": [...]}')
        return [list(entry["messages"][-2:])]

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs with an extra."""
        for position, batch in packed(run):
            yield position, evolve(batch, extras={**batch.extras, "epoch": torch.tensor(position.epoch)})


@frozen
class Rounding:
    """Weights rounded to a symmetric grid per tensor."""

    bits: int
    name: str = "reference-rounding"

    @torch.no_grad()
    def compress(self, model: VisionLanguageModel, **options: Any) -> Mapping[str, Any]:
        """Rounds in place -> bits per weight."""
        top = 2 ** (self.bits - 1) - 1
        for weight in model.parameters():
            step = weight.abs().max().clamp(min=1e-12) / top
            weight.copy_((weight / step).round() * step)
        return {"bits": self.bits}


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
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        temporary.write_text(json.dumps(shapes), encoding="utf-8")
        os.replace(temporary, path)
        return {"tensors": len(shapes)}
