"""The loop that runs every stage, on one process or many, with a state that survives kill -9."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import define, evolve, field, frozen

from andes_sdk.errors import TrainingError
from andes_sdk.types import Event, FeedingStage, ModelChange, Position, StatefulStage, SteppingStage, TrainingStage
from andes_training.changes import put_in_changes
from andes_training.data.bad import BadSamples
from andes_training.ema import start_average, swap_average, update_average
from andes_training.feed import packed
from andes_training.processes import Processes, divided_copy, gather, losing_others_is_told
from andes_training.reading import check_stages, stage_samples
from andes_training.recipe import Recipe, StageRecipe
from andes_training.recompute import recomputed
from andes_training.run import StageRun
from andes_training.state import Learner, load_state, read_position, save_state, states
from andes_training.step import Loss, decayed, freeze, make_optimizer, seed_step, update

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_training.progress import Progress


@frozen(eq=False)
class _Work:
    """A stage made ready to run.

    Attributes:
        learner: what steps change; under sharding its model is a divided copy.
        module: the loss, wrapped for several processes.
        changes: what changed the model, first to last.
    """

    index: int
    recipe: StageRecipe
    stage: TrainingStage
    learner: Learner
    module: torch.nn.Module
    changes: Sequence[ModelChange]


@define
class Trainer:
    """Runs a recipe on a pipeline.

    Attributes:
        pipeline: what is trained, in place.
        recipe: stages and data.
        out: folder for states and the trained checkpoint; all processes must see it.
        progress: shows what happens (in the first process), or None.
    """

    pipeline: Pipeline
    recipe: Recipe
    out: Path
    progress: Progress | None = None
    processes: Processes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.processes = Processes.join(self.pipeline.plan.device, self.recipe.timeout)

    def run(self, *, resume: bool = True) -> Path:
        """Train all stages, then save a checkpoint -> its folder.

        A run that was stopped, even by kill -9, goes on from its last state with identical numbers.

        Raises:
            TrainingError: bad data, a state of another recipe, a loss that is not finite, a process that failed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
        digest = self.recipe.digest()
        found = states(self.out)
        if found and not resume:
            raise TrainingError("the folder holds a run", who=str(self.out), fix="resume it, or choose another folder")
        position = read_position(found[-1], digest) if found else Position()
        check_stages(self.pipeline, self.recipe)
        with losing_others_is_told():
            self._agree(position)
            for index in range(position.stage, len(self.recipe.stages)):
                state = found[-1] if found and index == position.stage else None
                self._stage(index, position if state else Position(stage=index), state, digest)
            return self._save(self.out / "model")

    def _agree(self, position: Position) -> None:
        for rank, other in enumerate(self.processes.all(position)):
            if other != position:
                raise TrainingError(
                    "the processes see different states",
                    who=str(self.out),
                    why=f"process {rank} stands at {other}, process {self.processes.rank} at {position}",
                    fix="put the folder on a file system that all of them share",
                )

    def _stage(self, index: int, position: Position, state: Path | None, digest: str) -> None:
        seed_step(self.recipe, index, -1, 0)
        work = self._prepare(index)
        if state is not None:
            load_state(state, work.learner)
        run = self._describe(work, position)
        start = {"stage": work.recipe.stage, "steps": work.recipe.steps, "samples": len(run.samples)}
        self._tell("stage-start", position.step, start)
        with recomputed(work.learner.model, work.recipe.recompute):
            done = position
            for done in self._steps(work, run, position):
                if done.step % work.recipe.checkpoint_every == 0 or done.step == work.recipe.steps:
                    save_state(self.out, work.learner, done, digest, write=self.processes.first)
                    self._tell("checkpoint", done.step, {})
        self._finish(work)
        if skipped := run.bad.finish(done):
            self._tell("bad-samples", done.step, skipped)
        self._tell("stage-end", work.recipe.steps, {"stage": work.recipe.stage})

    def _prepare(self, index: int) -> _Work:
        recipe = self.recipe.stages[index]
        if recipe.accumulate % self.processes.world:
            raise TrainingError(
                f"{recipe.accumulate} packs per step cannot be shared by {self.processes.world} processes",
                who=f"stages.{index}.accumulate",
                fix=f"set it to a multiple of {self.processes.world}",
            )
        stage: TrainingStage = self.pipeline.pick("training_stages", recipe.stage)
        model = self.pipeline.model
        changes, rates = put_in_changes(model, stage, recipe)
        if recipe.lora is None or recipe.lora.merge:
            model.numbers = ""  # its weights will no longer be those that it was opened with
        decaying = decayed(model)  # before the model is copied: copies of parameters lose their attributes
        divided = self.recipe.sharding == "full" and self.processes.world > 1
        working = divided_copy(model) if divided else model.to(self.processes.device)
        freeze(working, rates)  # before the model is wrapped or divided
        loss = Loss(working, stage, complete=divided or (self.processes.world > 1 and _sees(working)))
        module = self.processes.wrap(loss, self.recipe.sharding).train()
        optimizer = make_optimizer(working, rates, recipe.weight_decay, decaying)
        own = stage if isinstance(stage, StatefulStage) else None
        learner = Learner(working, optimizer, start_average(working, recipe.ema), own)
        return _Work(index, recipe, stage, learner, module, changes)

    def _describe(self, work: _Work, position: Position) -> StageRun:
        return StageRun(
            pipeline=self.pipeline,
            recipe=work.recipe,
            stage=work.stage,
            samples=stage_samples(work.recipe.data, self.recipe.folder),
            position=position,
            seed=self.recipe.seed,
            index=work.index,
            out=self.out,
            bad=BadSamples.open(self.out, position, write=self.processes.first),
            device=self.processes.device,
            rank=self.processes.rank,
            world=self.processes.world,
            tell=lambda kind, values: self._tell(kind, None, values),
            gather=partial(gather, work.learner.model, self.pipeline.model),
            autocast=partial(
                torch.autocast, self.processes.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"
            ),
        )

    def _steps(self, work: _Work, run: StageRun, position: Position) -> Iterator[Position]:
        """Train -> the position after each step."""
        recipe, learner = work.recipe, work.learner
        groups = work.stage.feed(run) if isinstance(work.stage, FeedingStage) else packed(run)
        while position.step < recipe.steps:
            if isinstance(work.stage, SteppingStage):
                seed_step(self.recipe, work.index, position.step, run.rank)
                work.stage.before_step(cast("VisionLanguageModel", learner.model), position.step)
            packs = [next(groups) for _ in range(recipe.accumulate // run.world)]
            seed_step(self.recipe, work.index, position.step, run.rank)
            values = update(
                self.processes,
                work.module,
                learner.optimizer,
                [batch for _, batch in packs],
                recipe,
                position.step,
                run.autocast,
            )
            position = evolve(packs[-1][0], stage=work.index, step=position.step + 1)
            update_average(learner.average, learner.model, recipe.ema, position.step)
            self._tell("step", position.step, values)
            yield position
        if (close := getattr(groups, "close", None)) is not None:
            close()

    def _finish(self, work: _Work) -> None:
        """Bring the pipeline's model to what the stage made of it, whole and without changes."""
        model, learner = self.pipeline.model, work.learner
        if learner.average:
            swap_average(learner.average, learner.model)
            gather(learner.model, model)
            if work.recipe.ema_export == "beside":
                self._export(work, f"ema-{work.index:02d}")
                swap_average(learner.average, learner.model)
        gather(learner.model, model)
        model.eval()
        model.requires_grad_(True)
        for change in reversed(work.changes):
            if self.processes.first:
                change.save(model, self.out / change.folder)
            change.take_out(model)

    def _export(self, work: _Work, name: str) -> None:
        """Write averaged weights beside the run's own: what was learnt through changes, or a whole checkpoint."""
        if not work.changes:
            self._save(self.out / name)
        for change in work.changes if self.processes.first else ():
            change.save(self.pipeline.model, (self.out / change.folder).with_name(name))

    def _save(self, folder: Path) -> Path:
        if self.processes.first:
            self.pipeline.save_pretrained(folder)
        self.processes.wait()
        return folder

    def _tell(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        """To observers of the first process."""
        if not self.processes.first:
            return
        event = Event(kind=kind, step=step, values=values)
        if self.progress is not None:
            self.progress.show(event)
        self.pipeline.tell(event)


def _sees(model: VisionLanguageModel) -> bool:
    """Whether anything that pictures pass through trains."""
    parts = (model.vision_encoder, model.mlp)
    return any(p.requires_grad for part in parts for p in part.parameters())


def train(pipeline: Pipeline, recipe: Recipe, out: str | Path, *, resume: bool = True, progress: Any = None) -> Path:
    """Run a recipe's stages on a pipeline's model -> folder of the trained checkpoint. `pipe.train(recipe, out)`."""
    pipeline.refuse_packed("trained")
    return Trainer(pipeline, recipe, Path(out), progress).run(resume=resume)
