"""The stages of the reference plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from andes_sdk.errors import TrainingError
from andes_training.feed import packed
from andes_training.loss import next_token_loss

if TYPE_CHECKING:
    from andes_sdk.types import Model, Position
    from andes_training.packing import Batch
    from andes_training.run import StageRun


@frozen
class Stage:
    """Next-token loss on everything but the encoder."""

    rate: float
    name: str = "reference-stage"

    def rates(self, model: Model) -> Mapping[str, float]:
        """The encoder stays frozen."""
        return {"mlp": self.rate, "language_model": self.rate}

    def loss(self, model: Model, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
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
