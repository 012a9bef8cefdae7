"""Stage `sparse`: N:M masks that move while the model learns (SR-STE, arXiv 2102.04010).

The forward pass computes with weight × mask. The gradient goes to all weights as if there were no mask (straight
through), and pruned weights are pulled towards zero: λ · (1 − mask) · weight is added to their gradient. Every few
steps the masks are chosen anew, the largest magnitudes of every M. Over the first share of the steps the survivors
fall from M to N; over the last share the masks stay. At the end pruned weights become zero.
With a teacher the loss is that of the stage `distillation`; else it is the cross-entropy on the answers.
Left out: N:M for other modules than the language model's layers, division of the model among processes (FSDP).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from andes_distillation.stage import DistillationStage
from andes_training.data.rows import conversations_of
from andes_training.feed import packed
from andes_training.loss import next_token_loss
from attrs import define, field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear

from andes_sdk.errors import TrainingError

from .masks import keep_mask, matrices
from .schedule import is_due, refuse_options, settled, survivors

if TYPE_CHECKING:
    from andes_training.packing import Batch
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import Model, Position


class _Masked(torch.autograd.Function):
    """weight × mask; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Pull(torch.autograd.Function):
    """½ Σ ((1 − mask) · weight)². Nothing as large as the weights is kept for its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return 0.5 * weight.masked_fill(mask, 0.0).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradient * weight.masked_fill(mask, 0.0), None


def pull(weight: Tensor, mask: Tensor) -> Tensor:
    """Half the sum of squares of the weights that a mask leaves out: its gradient is (1 - mask) · weight."""
    return cast("Tensor", _Pull.apply(weight, mask))


class SparseLinear(nn.Linear):
    """A linear layer that computes with the weights that its mask keeps; the mask is a buffer, part of a state."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, _Masked.apply(self.weight, self.mask), self.bias)


def learning_from(teacher: str, kl: float, ce: float, k: int, temperature: float) -> DistillationStage | None:
    """The loss with a teacher; None without one."""
    if not teacher:
        return None
    return DistillationStage(source=teacher, module_rates={}, kl=kl, ce=ce, k=k, temperature=temperature)


@define(kw_only=True, eq=False)
class SparseStage:
    """Trains the parts of a model; matrices of the language model's layers become N:M sparse.

    Attributes:
        module_rates: module prefix -> learning rate; 0 freezes.
        n, m: weights that stay, of so many neighbours. roles: of the matrices; empty for all.
        every: steps between two choices of masks. ramp, hold: shares of the steps at the start and at the end.
        decay: λ. inner: the loss with a teacher, or None.
    """

    module_rates: Mapping[str, float]
    n: int
    m: int
    roles: Sequence[str]
    every: int
    ramp: float
    hold: float
    decay: float
    inner: DistillationStage | None = None
    name: str = "sparse"
    folder: str = "sparse"
    steps: int = field(default=0, init=False)

    def put_in(self, model: Model) -> None:
        """Give the matrices masks that keep everything.

        Raises:
            ConfigError: a matrix that cannot have one.
        """
        for _, module in matrices(model, self.m, self.roles).values():
            module.__class__ = SparseLinear  # in place: names, hooks and whoever holds the module stay
            module.register_buffer("mask", torch.ones_like(module.weight, dtype=torch.bool))

    def rates(self, model: Model) -> Mapping[str, float]:
        """Module prefix -> learning rate.

        Raises:
            TrainingError: a teacher that is missing or does not fit.
        """
        if self.inner is not None:
            self.inner.opened(model)
        return {prefix: rate for prefix, rate in self.module_rates.items() if rate > 0}

    def save(self, model: Model, folder: Path) -> None:
        """Nothing: what was learnt lies in the model."""

    @torch.no_grad()
    def take_out(self, model: Model) -> None:
        """Pruned weights become zero, and the layers plain ones."""
        for module in sparse_layers(model):
            module.weight.mul_(module.mask)
            del module.mask
            module.__class__ = nn.Linear  # type: ignore[assignment]

    def conversations(self, entry: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The usual lines."""
        return conversations_of(entry)

    def feed(self, run: StageRun) -> Iterator[tuple[Position, Batch]]:
        """The usual packs.

        Raises:
            TrainingError: options of the recipe under which the trained model would not have the pattern.
        """
        adapters = "adapters learn in place of the weights that masks choose among"
        refuse_options(run.recipe, "sparse training", adapters=adapters, lost="masks")
        self.steps = run.recipe.steps
        return packed(run)

    def survivors(self, step: int) -> int:
        """Weights of every m that stay at a step: m at first, n after the ramp."""
        return survivors(step, self.ramp * self.steps, self.n, self.m)

    @property
    def settled(self) -> int:
        """The step from which on masks stay; one step at least is left after it."""
        return settled(self.steps, self.hold)

    @torch.no_grad()
    def before_step(self, model: Model, step: int) -> None:
        """Choose the masks anew where that is due: a function of the weights and the step alone.

        Raises:
            TrainingError: the model is divided among processes.
        """
        if not is_due(step, self.every, self.settled):
            return
        count = self.n if step == self.settled else self.survivors(step)
        for module in sparse_layers(model):
            if isinstance(module.weight, DTensor):
                why, fix = "a process sees a share of each matrix only", 'set sharding = "none"'
                raise TrainingError("masks of a divided model cannot be chosen", who="sharding", why=why, fix=fix)
            module.mask.copy_(keep_mask(module.weight.abs(), count, self.m))

    def loss(self, model: VisionLanguageModel, batch: Batch) -> tuple[Tensor, Mapping[str, float]]:
        """A packed batch -> (loss in nats, figures). Where it is learnt from, the pull on pruned weights is added.

        Figures: those of the loss, and `sparsity`: the share of the matrices' weights that is pruned now.
        """
        loss, figures = (next_token_loss if self.inner is None else self.inner.loss)(model, batch)
        layers = sparse_layers(model)
        if self.decay and torch.is_grad_enabled():
            pulls = [pull(layer.weight, layer.mask) for layer in layers if layer.weight.requires_grad]
            loss = loss + self.decay * torch.stack(pulls).sum() if pulls else loss
        kept, total = (sum(parts) for parts in zip(*((int(x.mask.sum()), x.mask.numel()) for x in layers), strict=True))
        return loss, {**figures, "sparsity": 1.0 - kept / total}

    def state(self) -> Mapping[str, Tensor]:
        """The teacher's mark; masks are buffers of the model."""
        return {} if self.inner is None else self.inner.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Expect the teacher that the run began with."""
        if self.inner is not None:
            self.inner.load_state(tensors)


def sparse_layers(model: Model) -> list[SparseLinear]:
    """The layers with masks."""
    return [module for module in model.modules() if isinstance(module, SparseLinear)]
