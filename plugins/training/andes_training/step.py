"""One optimizer step: packs of several processes, one mean over all that is supervised."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve

from andes_sdk.errors import TrainingError
from andes_sdk.types import Media
from andes_training.packing import Batch
from andes_training.state import whole

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.types import TrainingStage
    from andes_training.processes import Processes
    from andes_training.recipe import Recipe, StageRecipe


class Loss(torch.nn.Module):
    """A stage's loss as a forward pass, which is what DDP and FSDP wrap.

    Args:
        complete: run the encoder for packs without pictures too, on one empty picture that adds zero to the loss, and
            other senses on no items: all processes then exchange the same parameters in the same order.
    """

    def __init__(self, model: VisionLanguageModel, stage: TrainingStage, *, complete: bool) -> None:
        super().__init__()
        self.model = model
        self.stage = stage
        self.complete = complete

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, float]]:
        """A pack -> (scalar loss, figures)."""
        media = getattr(batch, "media", {})
        idle = self._idle() if self.complete and "image" not in media else None
        if self.complete and self.model.senses and isinstance(batch, Batch):
            nothing = {kind: sense.pack([]) for kind, sense in self.model.senses.items() if kind not in media}
            batch = evolve(batch, media={**media, **nothing})
        loss, figures = self.stage.loss(self.model, batch)
        return loss if idle is None else loss + 0.0 * idle, figures

    def idle_parameters(self, kinds: Collection[str]) -> list[torch.nn.Parameter]:
        """What only items of other kinds than these pass through, where it runs for packs without them too."""
        idle = [] if "image" in kinds or not self.complete else ["vision_encoder.", "mlp."]
        idle += [f"modalities.{kind}." for kind in self.model.senses if self.complete and kind not in kinds]
        return [p for name, p in self.model.named_parameters() if name.startswith(tuple(idle))] if idle else []

    def _idle(self) -> torch.Tensor:
        spec = self.model.vision
        patches = torch.zeros(spec.merge**2, 3 * spec.patch_size**2, device=self.model.device)
        media = Media(data=patches, sizes=((spec.merge, spec.merge),), rows=(1,))
        return self.model.encode({"image": media})["image"].float().sum()


def freeze(model: torch.nn.Module, rates: Mapping[str, float]) -> list[tuple[str, torch.nn.Parameter, float]]:
    """Freeze what no prefix of `rates` names at a rate above zero, longest prefix first -> name, parameter, rate.

    Raises:
        TrainingError: a prefix names nothing, nothing trains, or a rate is negative or not finite.
    """
    for prefix, rate in rates.items():
        if not 0 <= rate < math.inf:
            why, fix = "a rate is a finite number", "give one above 0; 0 freezes"
            raise TrainingError(f"the learning rate is {rate}", who=prefix, why=why, fix=fix)
    learns: list[tuple[str, torch.nn.Parameter, float]] = []
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        prefixes = [p for p in rates if name == p or name.startswith(f"{p}.")]
        used.update(prefixes)
        rate = rates[max(prefixes, key=len)] if prefixes else 0.0
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            learns.append((name, parameter, rate))
    unknown = [p for p in rates if p not in used]
    if unknown or not learns:
        raise TrainingError(
            f"learning rates name no parameter: {', '.join(unknown) or 'nothing trains'}",
            fix="use prefixes such as 'mlp', 'vision_encoder', 'language_model'",
        )
    return learns


def decayed(model: torch.nn.Module) -> frozenset[str]:
    """Names of the parameters that weight decay pulls towards zero.

    Not decayed are vectors and scalars (norms, biases), learned scales (the last part of the name is `scale` or
    `scales`, or ends with `_scale` or `_scales`), and parameters with an attribute `no_decay` that is true.
    """
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
        and not getattr(parameter, "no_decay", False)
        and not name.rpartition(".")[2].endswith(("_scale", "_scales"))
        and name.rpartition(".")[2] not in ("scale", "scales")
    )


def make_optimizer(
    model: torch.nn.Module, rates: Mapping[str, float], weight_decay: float, decaying: Collection[str]
) -> torch.optim.AdamW:
    """AdamW over what learns (`freeze`); weight decay only on parameters named in `decaying` (see `decayed`)."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter, rate in freeze(model, rates):
        groups.setdefault((rate, weight_decay if name in decaying else 0.0), []).append(parameter)
    parts = [{"params": p, "lr": lr, "weight_decay": wd, "rate": lr} for (lr, wd), p in groups.items()]
    return torch.optim.AdamW(parts, betas=(0.9, 0.95), fused=True)


def seed_step(recipe: Recipe, stage: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout and the like) by the step alone, so that no state of theirs has to be kept."""
    # odd multipliers spread the four small numbers over 64 bits
    mixed = (
        recipe.seed * 0x9E3779B97F4A7C15 + stage * 0xBF58476D1CE4E5B9 + step * 0x94D049BB133111EB + rank * 0xD6E8FEB9
    )
    torch.manual_seed(mixed % (1 << 63))


def update(
    processes: Processes,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    recipe: StageRecipe,
    step: int,
    autocast: Any,
    progress: float = 0.0,
) -> dict[str, float]:
    """Forward, backward and step over this process's packs -> figures over all processes.

    Args:
        progress: share of the recipe's `epochs` that is done.

    Raises:
        TrainingError: the loss or a gradient is not finite; the weights are as they were.
    """
    factor = recipe.scale(step, progress)
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    counts = processes.all([(b.tokens, b.samples, tuple(getattr(b, "media", {}))) for b in batches])
    every = [one for own in counts for one in own]
    tokens, samples = (sum(one[i] for one in every) for i in (0, 1))
    totals: dict[str, float] = {}
    for number, batch in enumerate(batches, 1):
        share = batch.tokens / max(tokens, 1)
        with processes.alone(module, number == len(batches)):
            with autocast():
                loss, figures = module(batch.to(processes.device))
            if loss.requires_grad:  # a pack without pictures has nothing for a stage that trains the projector
                # DDP and FSDP divide by the number of processes; `share` has already
                (loss * (share * processes.world)).backward()
        # where no token has a loss, such as answers that are all masked, figures are means over samples
        part = share if tokens else batch.samples / max(samples, 1)
        for key, value in {"loss": float(loss.detach()), **figures}.items():
            totals[key] = totals.get(key, 0.0) + value * part
    totals = _sum(processes.all(totals))
    if not math.isfinite(totals["loss"]):
        raise TrainingError(
            f"the loss is {totals['loss']} at step {step + 1}", fix="lower the learning rate, or look at the data"
        )
    _forget_idle(module, {kind for one in every for kind in one[2]})
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    total = torch.nn.utils.get_total_norm([p.grad for p in trained])
    if not math.isfinite(norm := float(whole(total))):
        name = next((n for n, p in module.named_parameters() if _is_bad(p.grad)), "the norm of all")
        optimizer.zero_grad()
        raise TrainingError(
            f"a gradient is not finite at step {step + 1}",
            who=name.removeprefix("module.").removeprefix("model."),
            why=f"the loss is {totals['loss']:.4g}, the norm of the gradients {norm}",
            fix="lower the learning rate, or look at the data; the last state is as it was",
        )
    torch.nn.utils.clip_grads_with_norm_(trained, recipe.clip, total)
    optimizer.step()
    optimizer.zero_grad()
    return {**totals, "gradient_norm": norm, "rate_factor": factor, "tokens": tokens, "samples": samples}


def _forget_idle(module: torch.nn.Module, kinds: Collection[str]) -> None:
    """Drop the zeros of what no pack of the step used, as one process has none: the optimizer then leaves it alone."""
    loss = module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module
    for parameter in loss.idle_parameters(kinds) if isinstance(loss, Loss) else ():
        if parameter.grad is not None and not bool(whole(parameter.grad.abs().sum())):
            parameter.grad = None


def _is_bad(gradient: torch.Tensor | None) -> bool:
    return gradient is not None and not bool(whole(gradient.sum()).isfinite())


def _sum(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            totals[key] = totals.get(key, 0.0) + value
    return totals
