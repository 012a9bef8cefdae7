"""Losses of distillation as pure functions.

The divergence is the forward KL between the teacher's distribution and the student's, both at a temperature T
(arXiv 1503.02531, section 2). It is taken over the teacher's k most likely tokens and one bucket that holds all
others. By the log-sum inequality that is at most the KL over the whole vocabulary, and 0 where that is 0. The stage
multiplies it by T².
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from andes_training import loss as limits
from attrs import frozen
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from andes_sdk.types import Model


@frozen(eq=False)
class Top:
    """What a teacher says at N positions.

    Attributes:
        ids: (N, k) its most likely tokens, best first.
        logps: (N, k + 1) their log-probabilities and that of all other tokens; (N, k) where k is the vocabulary.
    """

    ids: Tensor
    logps: Tensor


def top_of(logits: Tensor, k: int, temperature: float) -> Top:
    """(N, V) logits -> the k most likely tokens at a temperature, and the bucket of the rest."""
    k = min(k, logits.shape[1])
    logps = (logits.float() / temperature).log_softmax(1)
    ids = logps.topk(k, 1).indices
    return Top(ids, bucketed(logps, ids))


def bucketed(logps: Tensor, ids: Tensor) -> Tensor:
    """(N, V) log-probabilities and (N, k) ids -> (N, k + 1): those of the ids, and of all others together.

    Where the ids are the whole vocabulary there are no others: (N, k).
    """
    own = logps.gather(1, ids)
    if ids.shape[1] == logps.shape[1]:
        return own
    # not log(1 - sum): it loses all digits where the ids hold nearly everything
    return torch.cat([own, logps.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)], 1)


def divergence(logits: Tensor, top: Top, temperature: float) -> Tensor:
    """(N, V) logits of the student -> (N,) nats: KL(teacher ‖ student) over the teacher's tokens and the rest."""
    logps = bucketed((logits.float() / temperature).log_softmax(1), top.ids)
    return (top.logps.exp() * (top.logps - logps)).sum(1)


def taught(model: Model, hidden: Tensor, k: int, temperature: float) -> Top:
    """What a teacher says of (N, D) rows after its last norm; logits exist for a part of them at a time."""
    parts = [top_of(model.logits(rows), k, temperature) for rows in hidden.split(_rows_at_once(model))]
    return Top(torch.cat([p.ids for p in parts]), torch.cat([p.logps for p in parts]))


def compared(
    model: Model, hidden: Tensor, labels: Tensor, top: Top, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A student beside its teacher, at N positions -> (N,) each: divergence, cross-entropy, whether the best agree.

    Both losses in nats. Logits exist for a part of the rows at a time, and are computed again in the backward pass.

    Args:
        hidden: (N, D) the student's rows after the last norm. labels: (N,) the data's tokens.
    """

    def score(rows: Tensor, own: Tensor, ids: Tensor, logps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = model.logits(rows).float()
        kl, ce = divergence(logits, Top(ids, logps), temperature), cross_entropy(logits, own, reduction="none")
        return kl, ce, logits.detach().argmax(1) == ids[:, 0]

    size = _rows_at_once(model)
    if len(hidden) <= size:
        return score(hidden, labels, top.ids, top.logps)
    parts = zip(*(t.split(size) for t in (hidden, labels, top.ids, top.logps)), strict=True)
    scored = [checkpoint(score, *part, use_reentrant=False) for part in parts]
    kl, ce, same = (torch.cat(one) for one in zip(*scored, strict=True))
    return kl, ce, same


def _rows_at_once(model: Model) -> int:
    return max(1, limits.CHUNK_LOGITS // model.text.vocab_size)
