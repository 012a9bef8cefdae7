"""Losses as pure functions of a model and a packed batch.

Logits are the largest thing in training: rows times a vocabulary of 151 936. They exist for a few hundred rows at a
time, in the forward pass and, computed again, in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from andes_sdk.types import Model
    from andes_training.packing import Batch

CHUNK_LOGITS = 1 << 25
"""Logits that exist at once: 128 MiB in float32, 220 rows of Qwen3's vocabulary."""


def next_token_loss(model: Model, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over all supervised tokens of the pack (AndesVL report, training; InternVL's token mean).

    Only supervised rows pass the LM head. -> (scalar in nats, {"accuracy": share of rows whose best token is right}).
    """
    wanted = batch.labels != -100
    hidden = hidden_rows(model, batch)[wanted]
    logps, right = token_scores(model, hidden, batch.labels[wanted])
    return -logps.mean(), {"accuracy": float(right.float().mean())}


def hidden_rows(model: Model, batch: Batch) -> Tensor:
    """A pack through encoder, projector, other senses and language model -> (T, D) after the last norm."""
    return model.hidden_states(model.embed(batch.ids, model.encode(batch.media)), batch.positions, batch.attend)


def token_logps(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of tokens: (N, D) rows and (N,) ids -> (N,) float32, differentiable.

    Never holds more than `CHUNK_LOGITS` logits.
    """
    return token_scores(model, hidden, targets)[0]


def token_scores(model: Model, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) and (N,) -> (N,) log-probabilities and (N,) bool, whether the target is the best token."""

    def score(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = model.logits(rows).float()  # (n, V)
        # what autograd keeps of it is one (n, V), not the logits beside their softmax
        return -cross_entropy(logits, ids, reduction="none"), logits.detach().argmax(1) == ids

    return in_parts(model, score, hidden, targets)


Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(n, D) rows and (n,) ids -> two figures (n,) of each."""


def in_parts(model: Model, score: Score, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) rows and (N,) ids, scored a part at a time, so that at most `CHUNK_LOGITS` logits stand in memory.

    Each part is computed again in the backward pass.
    """
    size = max(1, CHUNK_LOGITS // model.text.vocab_size)
    if len(hidden) <= size:
        return score(hidden, targets)
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    scored = [checkpoint(score, rows, ids, use_reentrant=False) for rows, ids in parts]
    return torch.cat([s[0] for s in scored]), torch.cat([s[1] for s in scored])
