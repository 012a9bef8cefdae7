"""The mixed preference loss (MPO, arXiv 2411.10442, section 3.2) as a pure function of log-probabilities.

loss = w_p * DPO + w_q * BCO + w_g * SFT, all from one pass over pairs of a chosen and a rejected answer:

- DPO (arXiv 2305.18290, eq. 7): -log sigmoid(r_c - r_r), with rewards r = beta * log(policy / reference) per answer;
- BCO (arXiv 2404.04656): -log sigmoid(r_c - delta) - log sigmoid(-(r_r - delta)), delta the reward shift;
- SFT: mean negative log-probability over the tokens of the chosen answers.

DPO and BCO are means over pairs. Left out: label smoothing and the other divergences of f-DPO.
"""

from __future__ import annotations

from attrs import frozen
from torch import Tensor
from torch.nn.functional import logsigmoid

Weights = tuple[float, float, float]
"""Of DPO, BCO and SFT."""


@frozen
class MixedLoss:
    """The loss and what it is made of: scalars, and rewards (P, 2) of chosen and rejected answers."""

    loss: Tensor
    dpo: Tensor
    bco: Tensor
    sft: Tensor
    rewards: Tensor

    def figures(self) -> dict[str, float]:
        """The parts, the mean reward margin, and the share of pairs whose chosen answer has the higher reward."""
        margins = (self.rewards[:, 0] - self.rewards[:, 1]).detach()
        chosen, rejected = self.rewards.detach().mean(0).tolist()
        return {
            "dpo": float(self.dpo.detach()),
            "bco": float(self.bco.detach()),
            "sft": float(self.sft.detach()),
            "preference": float((margins > 0).float().mean()),
            "margin": float(margins.mean()),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }


def rewards_of(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """(P, 2) log-probabilities of answers under policy and reference -> (P, 2) rewards."""
    return beta * (policy - reference)


def mixed_loss(rewards: Tensor, nll: Tensor, *, weights: Weights, shift: float) -> MixedLoss:
    """Rewards (P, 2) of chosen and rejected answers, and the chosen answers' mean token loss -> the mixed loss."""
    chosen, rejected = rewards.unbind(1)
    dpo = -logsigmoid(chosen - rejected).mean()
    bco = -(logsigmoid(chosen - shift) + logsigmoid(shift - rejected)).mean()
    return MixedLoss(weights[0] * dpo + weights[1] * bco + weights[2] * nll, dpo, bco, nll, rewards)
