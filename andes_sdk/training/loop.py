"""The loop that runs every stage: Accelerate for devices and precision, a state that survives kill -9."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from attrs import define, evolve

from andes_sdk.errors import TrainingError
from andes_sdk.training.data import Sample, ahead, make_rows, read_samples
from andes_sdk.training.packing import Batch, Row, collate, pack
from andes_sdk.training.recipe import Recipe, StageRecipe, rates_of
from andes_sdk.training.state import Position, load_state, read_position, save_state, states
from andes_sdk.types import Event

if TYPE_CHECKING:
    from andes_sdk.pipeline import Pipeline
    from andes_sdk.training.progress import Progress
    from andes_sdk.types import TrainingStage


class _Step(torch.nn.Module):
    """The stage's loss as a forward pass, which is what Accelerate wraps."""

    def __init__(self, model: torch.nn.Module, stage: TrainingStage) -> None:
        super().__init__()
        self.model = model
        self.stage = stage

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, float]]:
        return self.stage.loss(self.model, batch)  # type: ignore[arg-type]


@define
class Trainer:
    """Runs a recipe on a pipeline.

    Attributes:
        pipeline: what is trained, in place.
        recipe: stages and data.
        out: folder for states and the trained checkpoint.
        progress: shows what happens, or None.
    """

    pipeline: Pipeline
    recipe: Recipe
    out: Path
    progress: Progress | None = None

    def run(self, *, resume: bool = True) -> Path:
        """Train all stages, then save a checkpoint -> its folder.

        A run that was stopped, even by kill -9, goes on from its last state with identical numbers.

        Raises:
            TrainingError: bad data, a state of another recipe, or a loss that is not finite.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
        digest = self.recipe.digest()
        found = states(self.out)
        if found and not resume:
            raise TrainingError("the folder holds a run", who=str(self.out), fix="resume it, or choose another folder")
        position = read_position(found[-1], digest) if found else Position()
        torch.manual_seed(self.recipe.seed)
        for index in range(position.stage, len(self.recipe.stages)):
            state = found[-1] if found and index == position.stage else None
            self._stage(index, evolve(position, stage=index) if state else Position(stage=index), state, digest)
        return self.pipeline.save_pretrained(self.out / "model")

    def _stage(self, index: int, position: Position, state: Path | None, digest: str) -> None:
        recipe = self.recipe.stages[index]
        stage = self.pipeline.pick("training_stages", recipe.stage)
        samples = [s for d in recipe.data for s in read_samples(d, self.recipe.folder)]
        accelerator = Accelerator(cpu=self.pipeline.plan.device == "cpu", mixed_precision=self.recipe.precision)
        model = self.pipeline.model
        model.to(accelerator.device)
        optimizer = _optimizer(model, rates_of(recipe, stage.rates(model)), recipe.weight_decay)
        if state is not None:
            load_state(state, model, optimizer)
        step_module, wrapped = accelerator.prepare(_Step(model, stage), optimizer)
        step_module.train()
        self._tell(
            "stage-start", position.step, {"stage": recipe.stage, "steps": recipe.steps, "samples": len(samples)}
        )
        groups = ahead(self._packs(samples, recipe, position))
        saved = position.step
        while position.step < recipe.steps:
            packs = [next(groups) for _ in range(recipe.accumulate)]
            values = _update(accelerator, step_module, wrapped, [b for _, b in packs], recipe, position.step)
            position = evolve(packs[-1][0], stage=index, step=position.step + 1)
            self._tell("step", position.step, values)
            if position.step % recipe.checkpoint_every == 0 or position.step == recipe.steps:
                save_state(self.out, model, optimizer, position, digest)
                saved = position.step
                self._tell("checkpoint", saved, {})
        groups.close()  # type: ignore[attr-defined]
        model.eval()
        model.requires_grad_(True)
        self._tell("stage-end", position.step, {"stage": recipe.stage})

    def _packs(
        self, samples: list[Sample], recipe: StageRecipe, position: Position
    ) -> Iterator[tuple[Position, Batch]]:
        """Packed batches for ever, each with the position right after it."""
        epoch, start = position.epoch, position.offset
        processor = self.pipeline.processor
        while True:
            offset = start
            rows: Iterator[Row] = (
                row for _, row in make_rows(samples, processor, seed=self.recipe.seed, epoch=epoch, start=start)
            )
            for group in pack(rows, max_tokens=recipe.max_tokens, max_patches=recipe.max_patches):
                offset += len(group)
                yield Position(epoch=epoch, offset=offset), collate(group)
            epoch, start = epoch + 1, 0

    def _tell(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        event = Event(kind=kind, step=step, values=values)
        if self.progress is not None:
            self.progress.show(event)
        self.pipeline.tell(event)


def _optimizer(model: torch.nn.Module, rates: Mapping[str, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what `rates` names (longest prefix wins); everything else is frozen. Vectors are not decayed."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        prefix = max((p for p in rates if name == p or name.startswith(f"{p}.")), key=len, default=None)
        rate = 0.0 if prefix is None else rates[prefix]
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            groups.setdefault((rate, weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    unknown = [p for p in rates if not any(n == p or n.startswith(f"{p}.") for n, _ in model.named_parameters())]
    if unknown or not groups:
        raise TrainingError(
            f"learning rates name no parameter: {', '.join(unknown) or 'nothing trains'}",
            fix="use prefixes such as 'mlp', 'vision_encoder', 'language_model'",
        )
    return torch.optim.AdamW(
        [{"params": p, "lr": lr, "weight_decay": wd, "rate": lr} for (lr, wd), p in groups.items()], betas=(0.9, 0.95)
    )


def _update(
    accelerator: Accelerator, module: Any, optimizer: Any, batches: list[Batch], recipe: StageRecipe, step: int
) -> dict[str, float]:
    """One optimizer step over several packs; their loss is one mean over all supervised tokens."""
    factor = recipe.scale(step)
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    tokens = sum(b.tokens for b in batches)
    totals: dict[str, float] = {}
    for batch in batches:
        with accelerator.autocast():
            loss, figures = module(batch.to(accelerator.device))
        share = batch.tokens / max(tokens, 1)
        accelerator.backward(loss * share)
        for key, value in {"loss": float(loss.detach()), **figures}.items():
            totals[key] = totals.get(key, 0.0) + value * share
    norm = accelerator.clip_grad_norm_(module.parameters(), recipe.clip)
    if not math.isfinite(totals["loss"]):
        raise TrainingError(
            f"the loss is {totals['loss']} at step {step + 1}", fix="lower the learning rate, or look at the data"
        )
    optimizer.step()
    optimizer.zero_grad()
    return {
        **totals,
        "gradient_norm": float(norm),
        "rate_factor": factor,
        "tokens": tokens,
        "samples": sum(b.samples for b in batches),
    }
