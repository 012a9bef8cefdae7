"""The objective as pure functions: advantages, overlong penalty, clipped surrogate, KL, importance correction.

GRPO: DeepSeekMath, arXiv 2402.03300, eq. 3 and 4. Dr. GRPO: arXiv 2503.20783 (no deviation, constant normaliser).
DAPO: arXiv 2503.14476 (clip-higher, token mean, overlong penalty eq. 13). GSPO: arXiv 2507.18071 (ratio per sequence).
The correction of the sampler's mismatch is truncated importance sampling (Ionides 2008; Yao et al. 2025).

Tokens of all answers lie one after another, (N,); `answer` (N,) says which of the K answers a token belongs to. No
padding exists, so no padding can leak into a mean. Left out: value functions, entropy bonus, soft gates (SAPO, CISPO).
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

EPSILON = 1e-4
"""Added to a group's deviation, as in TRL."""


ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Share of the largest reward by which equal ones may differ: a sum of a few weighted rewards, rounded to float32."""


@frozen
class Surrogate:
    """Constants of the loss; as in `Options`.

    Attributes:
        normalise: "token", "sequence" or "constant". level: "token" or "sequence".
        clip_low, clip_high: ratios stay within [1 - low, 1 + high] where that lowers the objective.
        kl: weight of the KL term. kl_correction: weigh it by the importance ratio (DeepSeek-V3.2, arXiv 2512.02556).
        mismatch_cap: largest correction of the sampler's mismatch, or None.
        max_answer: the constant of "constant".
    """

    normalise: str = "token"
    level: str = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    kl_correction: bool = True
    mismatch_cap: float | None = 2.0
    max_answer: int = 512


def advantages(rewards: Tensor, *, scale: str = "group") -> Tensor:
    """(P, G) rewards -> (P, G): minus the group's mean, and with "group" divided by its deviation (n - 1).

    Groups whose rewards are all equal, but for rounding, get exactly zero: an optimizer of Adam's kind makes a full
    step of whatever residue is left.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    scaled = centred / (rewards.std(dim=1, keepdim=True) + EPSILON) if scale == "group" else centred
    return scaled.masked_fill(equal(rewards)[:, None], 0.0)


def equal(rewards: Tensor) -> Tensor:
    """(P, G) rewards -> (P,) whether a group's are all the same, but for the rounding of float32."""
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    return spread <= ROUNDING * rewards.abs().amax(dim=1)


def overlong_penalty(length: int, *, max_answer: int, buffer: int) -> float:
    """Soft overlong punishment (DAPO, eq. 13): 0 up to `max_answer - buffer` tokens, then falling to -1."""
    return min(0.0, (max_answer - buffer - length) / buffer)


def weight(normalise: str, keep: Tensor, lengths: Tensor) -> int:
    """What a batch counts in the mean over batches: its tokens with a loss, or its answers.

    keep, lengths: (K,) whether an answer has a loss, and its tokens. Answers without a loss count in a mean over
    answers, as in TRL.
    """
    return int((lengths * keep).sum()) if normalise == "token" else len(lengths)


def grpo_loss(
    logps: Tensor,
    *,
    advantages: Tensor,
    answer: Tensor,
    keep: Tensor,
    surrogate: Surrogate,
    old: Tensor | None = None,
    sampled: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The clipped objective of one batch, to be minimised -> (scalar, figures).

    Args:
        logps: (N,) log-probabilities of the sampled tokens under the weights that learn.
        advantages, keep: (K,) per answer; an answer that is not kept has no loss.
        answer: (N,) index of the answer that a token belongs to, ascending.
        old: (N,) under the weights that the rollout was made with; None: these weights, so ratios are 1.
        sampled: (N,) as the sampler computed them; None: no correction.
        reference: (N,) under the reference; needed if `surrogate.kl`.
    """
    s = surrogate
    mask = keep[answer].to(logps.dtype)
    counts = torch.zeros_like(advantages, dtype=logps.dtype).index_add(0, answer, mask)
    old = logps.detach() if old is None else old
    log_ratio = logps - old
    if s.level == "sequence":
        sums = torch.zeros_like(counts).index_add(0, answer, log_ratio * mask)
        log_ratio = (sums / counts.clamp(min=1.0))[answer]
    ratio = log_ratio.exp()
    gain = advantages.to(logps.dtype)[answer]
    loss = -torch.minimum(ratio * gain, ratio.clamp(1 - s.clip_low, 1 + s.clip_high) * gain)
    figures = {
        "clip_low": _mean((ratio < 1 - s.clip_low) & (gain < 0), mask),
        "clip_high": _mean((ratio > 1 + s.clip_high) & (gain > 0), mask),
    }
    if sampled is not None:
        drift = old - sampled
        figures |= {"mismatch": _mean(drift.abs(), mask), "mismatch_kl": _mean(drift.exp() - 1 - drift, mask)}
        if s.mismatch_cap is not None:
            loss = loss * drift.exp().clamp(max=s.mismatch_cap)
    if s.kl:
        if reference is None:
            raise ValueError("a KL term needs the reference's log-probabilities")
        gap = reference - logps
        divergence = gap.exp() - gap - 1  # k3 (Schulman 2020): never negative, unbiased
        figures["kl"] = _mean(divergence, mask)
        loss = loss + s.kl * (divergence * ratio if s.kl_correction else divergence)
    return _reduced(loss * mask, mask, answer, counts, s), figures


def _reduced(loss: Tensor, mask: Tensor, answer: Tensor, counts: Tensor, s: Surrogate) -> Tensor:
    """(N,) masked losses -> scalar."""
    if s.normalise == "token":
        return loss.sum() / mask.sum().clamp(min=1.0)
    if s.normalise == "sequence":
        return (loss / counts.clamp(min=1.0)[answer]).sum() / len(counts)
    return loss.sum() / (len(counts) * s.max_answer)


def _mean(values: Tensor, mask: Tensor) -> float:
    return float((values.detach() * mask).sum() / mask.sum().clamp(min=1.0))
