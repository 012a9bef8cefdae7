"""The policy that learns: the model's distribution at a temperature, without the placeholders of pictures and the like.

An answer with an image token could not be read again (there are no pixels for it), so neither the sampler nor the loss
gives it, or another placeholder, any probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from andes_training.loss import hidden_rows, in_parts
from torch import Tensor

if TYPE_CHECKING:
    from andes_training.packing import Batch

    from andes_sdk.model import VisionLanguageModel


def placeholders(model: VisionLanguageModel) -> list[int]:
    """The tokens that no answer may hold."""
    return [model.tokenizer.placeholder(kind) for kind in model.kinds]


def log_policy(logits: Tensor, *, banned: Sequence[int], temperature: float) -> Tensor:
    """(T, V) logits -> (T, V) float32 log-probabilities; those of the banned tokens are -inf."""
    scores = logits.float() / temperature
    index = torch.tensor(banned, dtype=torch.int64, device=scores.device)
    return scores.index_fill(1, index, -torch.inf).log_softmax(dim=1)


def answer_logps(model: VisionLanguageModel, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """A pack -> (N,) log-probabilities of its labels, differentiable, and (N,) entropies in nats, without gradient.

    Never holds more than `andes_training.loss.CHUNK_LOGITS` logits.
    """
    wanted = batch.labels != -100
    hidden, targets = hidden_rows(model, batch)[wanted], batch.labels[wanted]
    banned = placeholders(model)

    def score(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        every = log_policy(model.logits(rows), banned=banned, temperature=temperature)
        with torch.no_grad():
            entropy = -(every.exp() * every.masked_fill(every == -torch.inf, 0.0)).sum(1)
        return every.gather(1, ids[:, None])[:, 0], entropy

    return in_parts(model, score, hidden, targets)
