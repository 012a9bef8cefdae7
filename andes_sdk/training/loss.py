"""Losses as pure functions of a model and a packed batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.training.packing import Batch


def next_token_loss(model: VisionLanguageModel, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Mean cross-entropy over all supervised tokens of the pack (AndesVL report, training; InternVL's token mean).

    Only supervised rows pass the LM head. -> (scalar in nats, {"accuracy": share of rows whose best token is right}).
    """
    images = None if batch.patches is None else model.encode_images(batch.patches, batch.grids)
    hidden = model.hidden_states(model.embed(batch.ids, images), batch.positions, batch.attend)
    wanted = batch.labels != -100
    logits = model.logits(hidden[wanted]).float()
    target = batch.labels[wanted]
    right = (logits.detach().argmax(-1) == target).float().mean()
    return cross_entropy(logits, target), {"accuracy": float(right)}
