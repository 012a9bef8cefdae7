"""The stage `mpo`: pairs in, mixed preference loss out, one pass over prompt and pictures for both answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from andes_training.feed import packed
from andes_training.loss import hidden_rows, token_logps
from andes_training.packing import branch_slices
from attrs import define, evolve, field
from torch import Tensor

from andes_sdk.errors import TrainingError

from .losses import Weights, mixed_loss, rewards_of
from .reference import OnlineReference, StoredReference, refuse_changing

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Position

_LINE = '{"prompt": [messages], "chosen": "…", "rejected": "…"}'


@define
class RewardShift:
    """BCO's delta: the mean, over all batches so far, of each batch's mean reward, the present one included.

    As in the versions of TRL that InternVL's MPO was trained with; later ones have no shift. Every batch counts once.
    """

    count: int = 0
    mean: float = 0.0

    def update(self, rewards: Tensor) -> None:
        """Count one more batch (P, 2); with several processes their mean."""
        value = rewards.detach().double().mean()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(value)
            value = value / torch.distributed.get_world_size()
        self.count += 1
        self.mean += (float(value) - self.mean) / self.count


@define(kw_only=True, eq=False)
class MixedPreference:
    """Trains the parts of the model, each at its own rate; a rate of 0 freezes.

    The mean is over pairs; the SFT part is a mean over the chosen tokens of a pack, as TRL has it.
    """

    learning_rates: Mapping[str, float]
    beta: float
    weights: Weights
    running: bool
    online: bool
    name: str = "mpo"
    shift: RewardShift = field(factory=RewardShift)

    def rates(self, model: VisionLanguageModel) -> Mapping[str, float]:
        """Module prefix -> learning rate."""
        return {prefix: rate for prefix, rate in self.learning_rates.items() if rate > 0}

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Mapping[str, Any]]]:
        """A pair -> prompt with the chosen, and with the rejected answer.

        Raises:
            TrainingError: another shape, or two equal answers.
        """
        prompt, answers = entry.get("prompt"), [entry.get(key) for key in ("chosen", "rejected")]
        if not (isinstance(prompt, list) and prompt and all(isinstance(a, str) and a for a in answers)):
            raise TrainingError("is not a pair of answers", fix=f"write {_LINE}")
        if answers[0] == answers[1]:
            raise TrainingError("its chosen and rejected answers are the same", fix="delete the line")
        return [[*prompt, {"role": "assistant", "content": answer}] for answer in answers]

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs, each with the reference's log-probabilities of its answers."""
        refuse_changing(run, online=self.online)
        if run.position.step == 0:
            self.shift = RewardShift()
        kind = OnlineReference if self.online else StoredReference
        reference = kind.of(run, answer_logps)
        for position, batch in packed(run):
            extras = {**batch.extras, "reference": reference(batch)}
            yield position, evolve(batch, tokens=batch.samples, extras=extras)

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A pack of pairs -> (mixed loss, its parts and what became of the preferences).

        Without gradients the reward shift stays where it is.

        Raises:
            TrainingError: the pack was not made by `feed`.
        """
        if "reference" not in batch.extras:
            raise TrainingError("the batch holds no reference log-probabilities", who=self.name, fix="use stage.feed")
        policy, nll = answer_logps(model, batch)
        rewards = rewards_of(policy, batch.extras["reference"].reshape(-1, 2), self.beta)
        if self.running and torch.is_grad_enabled():
            self.shift.update(rewards)
        mixed = mixed_loss(rewards, nll, weights=self.weights, shift=self.shift.mean)
        return mixed.loss, {**mixed.figures(), "shift": self.shift.mean}

    def state(self) -> Mapping[str, Tensor]:
        """The reward shift."""
        return {"shift": torch.tensor([self.shift.count, self.shift.mean], dtype=torch.float64)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the reward shift back."""
        count, mean = tensors["shift"].tolist()
        self.shift = RewardShift(int(count), mean)


def answer_logps(model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """A pack of P pairs -> (P, 2) log-probabilities of the chosen and rejected answers, in nats, and the mean loss per
    token of the chosen ones.

    Only the last answer of a conversation counts, not earlier turns of the assistant.
    """
    spans = [[_answer(batch.labels, rows) for rows in branches] for branches in branch_slices(batch)]
    if any(len(pair) != 2 for pair in spans):
        raise TrainingError("the pack holds a sample that is not a pair of answers", fix=f"write {_LINE}")
    wanted = torch.cat([torch.arange(s.start, s.stop) for pair in spans for s in pair]).to(batch.labels.device)
    logps = token_logps(model, hidden_rows(model, batch)[wanted], batch.labels[wanted])
    parts = logps.split([s.stop - s.start for pair in spans for s in pair])
    policy = torch.stack([part.sum() for part in parts]).reshape(-1, 2)
    return policy, -torch.cat(parts[::2]).mean()


def _answer(labels: Tensor, branch: slice) -> slice:
    """The rows of a branch that predict its last answer: the last unbroken run of supervised rows."""
    rows = (labels[branch] != -100).nonzero()[:, 0].tolist()
    first = last = rows[-1]
    for row in reversed(rows):
        if row < first - 1:
            break
        first = row
    return slice(branch.start + first, branch.start + last + 1)
