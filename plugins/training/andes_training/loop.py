"""The loop that runs every stage, on one process or many, with a state that survives kill -9."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from attrs import define, evolve, field, frozen

from andes_sdk.errors import TrainingError
from andes_sdk.types import Event, FeedingStage, ModelChange, Position, StatefulStage, SteppingStage, TrainingStage
from andes_training.best import Best, best_states
from andes_training.changes import put_in_changes
from andes_training.data.bad import BadSamples
from andes_training.data.fingerprint import fingerprints
from andes_training.ema import start_average, swap_average, update_average
from andes_training.evaluating import Evaluation
from andes_training.feed import epoch_length, packed
from andes_training.lora import Lora
from andes_training.processes import Processes, divided_copy, gather, losing_others_is_told
from andes_training.reading import check_stages, refuse_blind, stage_samples
from andes_training.recipe import Recipe, StageRecipe, check_start
from andes_training.recompute import recomputed
from andes_training.resume import check_saved
from andes_training.run import StageRun
from andes_training.state import Learner, Saved, load_state, read_saved, save_state, saving, states
from andes_training.step import Loss, decayed, freeze, make_optimizer, seed_step, update
from andes_training.stopping import Stopped, Stopping
from andes_training.validation import Validation

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel
    from andes_sdk.pipeline import Pipeline
    from andes_training.progress import Progress


@frozen(eq=False)
class _Work:
    """A stage made ready to run.

    Attributes:
        learner: what steps change; under sharding its model is a divided copy.
        module: the loss, wrapped for several processes. loss: the same, not wrapped by DDP.
        changes: what changed the model, first to last.
    """

    index: int
    recipe: StageRecipe
    stage: TrainingStage
    learner: Learner
    module: torch.nn.Module
    loss: Loss
    changes: Sequence[ModelChange]


@frozen(eq=False)
class _Looks:
    """What a stage is measured by on data that is not learnt from, and when that was best."""

    validation: Validation | None
    evaluation: Evaluation | None
    best: Best | None

    @classmethod
    def of(cls, run: StageRun, folder: Path) -> _Looks:
        """As the stage's recipe says."""
        validation = Validation(run, folder) if run.recipe.validation else None
        return cls(validation, Evaluation(run, folder) if run.recipe.eval else None, Best.of(run))

    def prove(self, loss: Loss) -> None:
        """Look at a little of everything, so that what cannot be measured fails now, and not after many steps."""
        if self.validation is not None:
            self.validation.loss(loss, packs=1)
        if self.evaluation is not None:
            self.evaluation.figures(limit=1)

    def take(self, step: int, loss: Loss, processes: Processes) -> dict[str, float]:
        """The figures that are due after a step; every process gets the same."""
        values: dict[str, float] = {}
        if self.validation is not None and self.validation.due(step):
            values["validation_loss"] = processes.all(self.validation.loss(loss))[0]
        if self.evaluation is not None and self.evaluation.due(step):
            values |= processes.all(self.evaluation.figures())[0]
        if self.best is not None:
            self.best.note(step, values)
        return values

    def over(self, step: int) -> bool:
        """Whether the stage ends here though its steps are not done."""
        return self.best is not None and self.best.over(step)


@define
class Trainer:
    """Runs a recipe on a pipeline.

    Attributes:
        pipeline: what is trained, in place.
        recipe: stages and data.
        out: folder for states and the trained checkpoint; all processes must see it.
        progress: shows what happens (in the first process), or None.
        stopping: whether a signal asked to stop, or None.
    """

    pipeline: Pipeline
    recipe: Recipe
    out: Path
    progress: Progress | None = None
    stopping: Stopping | None = None
    processes: Processes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.processes = Processes.join(self.pipeline.plan.device, self.recipe.timeout)

    def run(self, *, resume: bool = True, accept_changed_data: bool = False) -> Path:
        """Train all stages, then save a checkpoint -> its folder.

        A run that was stopped, even by kill -9, goes on from its last state with identical numbers. Weights are held in
        float32 whatever precision the model was opened in; `Recipe.precision` says what is computed in.

        Args:
            accept_changed_data: go on although the data files are not those that the state was saved with.

        Raises:
            TrainingError: bad data, a state of another recipe or of other data, a loss or a gradient that is not
                finite, a process that failed, a full disk. Stopped: a signal asked to stop, and a state is saved.
        """
        with saving(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        if self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
        found = states(self.out)
        if found and not resume:
            raise TrainingError("the folder holds a run", who=str(self.out), fix="resume it, or choose another folder")
        position, told = Position(), list[str]()
        if found:
            saved = read_saved(found[-1])
            told = check_saved(saved, self.recipe, found[-1], accept_changed_data=accept_changed_data)
            position = saved.position
        check_stages(self.pipeline, self.recipe)
        check_start(self.recipe, self.pipeline)
        if told:
            self._tell("resumed", position.step, {"state": found[-1].name, "changed": told})
        if self.pipeline.model.dtype != torch.float32:
            self.pipeline.retype("float32")
        with losing_others_is_told():
            self._agree(position)
            for index in range(position.stage, len(self.recipe.stages)):
                state = found[-1] if found and index == position.stage else None
                self._stage(index, position if state else Position(stage=index), state)
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

    def _stage(self, index: int, position: Position, state: Path | None) -> None:
        seed_step(self.recipe, index, -1, 0)
        work = self._prepare(index)
        if state is not None:
            load_state(state, work.learner)
        run = self._describe(work, position)
        refuse_blind(cast("VisionLanguageModel", work.learner.model), run.samples, work.recipe.stage)
        looks = _Looks.of(run, self.recipe.folder)
        facts = self.recipe.facts(), fingerprints(work.recipe.data, self.recipe.folder)
        start = {"stage": work.recipe.stage, "steps": work.recipe.steps, "samples": len(run.samples)}
        self._tell("stage-start", position.step, start)
        with recomputed(work.learner.model, work.recipe.recompute):
            if not position.step:
                looks.prove(work.loss)
            before = kept = done = position
            for done in self._steps(work, run, position, looks):
                moved = (done.epoch, done.offset) != (before.epoch, before.offset)  # not within a rollout
                stop = moved and self._signal()
                better = looks.best is not None and looks.best.better
                if stop or better or done.step % work.recipe.checkpoint_every == 0:
                    self._keep(work, Saved(position=done, recipe=facts[0], data=facts[1]), looks.best)
                    kept = done
                if stop:
                    raise _stopped(stop, self.out, done)
                before = done
            if kept != done:
                self._keep(work, Saved(position=done, recipe=facts[0], data=facts[1]), looks.best)
        if looks.over(done.step) and looks.best is not None and (state := looks.best.state()) is not None:
            load_state(state, work.learner)
            self._tell("stopped-early", done.step, {looks.best.name: looks.best.value, "best_step": looks.best.step})
        self._finish(work)
        if skipped := run.bad.finish(done):
            self._tell("bad-samples", done.step, skipped)
        self._tell("stage-end", done.step, {"stage": work.recipe.stage})

    def _keep(self, work: _Work, saved: Saved, best_one: Best | None) -> None:
        better = best_one is not None and best_one.better
        best = best_states(self.out)
        spare = {name for stage, (_, _, name) in best.items() if not (better and stage == work.index)}
        first = self.processes.first
        name = save_state(self.out, work.learner, saved, keep=self.recipe.keep_states, spare=spare, write=first)
        if best_one is not None and best_one.better:
            best_one.better = False
            if first:
                with saving(self.out):
                    best_one.keep(name)
            self.processes.wait()  # all read it at the next one
        self._tell("checkpoint", saved.position.step, {})

    def _signal(self) -> int:
        """The signal that asked any process to stop, or 0."""
        return int(max(self.processes.all(self.stopping.signal if self.stopping is not None else 0)))

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
        for change in changes:
            if isinstance(change, Lora) and change.recipe.chain:
                change.load(model, self.out / change.folder)
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
        return _Work(index, recipe, stage, learner, module, loss, changes)

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

    def _steps(self, work: _Work, run: StageRun, position: Position, looks: _Looks) -> Iterator[Position]:
        """Train -> the position after each step."""
        recipe, learner = work.recipe, work.learner
        length = epoch_length(run) if recipe.epochs else 0
        groups = work.stage.feed(run) if isinstance(work.stage, FeedingStage) else packed(run)
        while (done := _progress(recipe, position, length)) < 1 and not looks.over(position.step):
            if isinstance(work.stage, SteppingStage):
                seed_step(self.recipe, work.index, position.step, run.rank)
                work.stage.before_step(cast("VisionLanguageModel", learner.model), position.step)
            packs = [next(groups) for _ in range(recipe.accumulate // run.world)]
            if recipe.epochs and packs[0][0].epoch >= recipe.epochs:  # the last samples of the data were skipped
                break
            seed_step(self.recipe, work.index, position.step, run.rank)
            values = update(
                self.processes,
                work.module,
                learner.optimizer,
                [batch for _, batch in packs],
                recipe,
                position.step,
                run.autocast,
                done,
            )
            position = evolve(packs[-1][0], stage=work.index, step=position.step + 1)
            update_average(learner.average, learner.model, recipe.ema, position.step)
            if recipe.epochs:
                values["epoch"] = min(1.0, _progress(recipe, position, length)) * recipe.epochs
            values |= looks.take(position.step, work.loss, self.processes)
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
                with saving(self.out / change.folder):
                    change.save(model, self.out / change.folder)
            change.take_out(model)

    def _export(self, work: _Work, name: str) -> None:
        """Write averaged weights beside the run's own: what was learnt through changes, or a whole checkpoint."""
        if not work.changes:
            self._save(self.out / name)
        for change in work.changes if self.processes.first else ():
            with saving(folder := (self.out / change.folder).with_name(name)):
                change.save(self.pipeline.model, folder)

    def _save(self, folder: Path) -> Path:
        if self.processes.first:
            with saving(folder):
                self.pipeline.save_pretrained(folder)
        self.processes.wait()
        return folder

    def _tell(self, kind: str, step: int | None, values: Mapping[str, Any]) -> None:
        """To observers of the first process."""
        if not self.processes.first:
            return
        event = Event(kind=kind, step=step, values=values)
        if self.progress is not None:
            with saving(self.out):
                self.progress.show(event)
        self.pipeline.tell(event)


def _progress(recipe: StageRecipe, position: Position, length: int) -> float:
    """Share of a stage's steps, or of its epochs of `length` samples, that is done; 1 at its end."""
    if recipe.epochs:
        return (position.epoch + min(1.0, position.offset / length)) / recipe.epochs
    return position.step / recipe.steps


def _stopped(number: int, out: Path, position: Position) -> Stopped:
    name = signal.Signals(number).name
    what = f"stopped by {name} after step {position.step} of stage {position.stage + 1}, its state is saved"
    error = Stopped(what, who=str(out), fix="run the same command to go on")
    error.signal = number
    return error


def _sees(model: VisionLanguageModel) -> bool:
    """Whether anything that pictures pass through trains."""
    parts = (model.vision_encoder, model.mlp)
    return any(p.requires_grad for part in parts for p in part.parameters())


def train(
    pipeline: Pipeline,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = True,
    accept_changed_data: bool = False,
    progress: Any = None,
    stopping: Stopping | None = None,
) -> Path:
    """Run a recipe's stages on a pipeline's model -> folder of the trained checkpoint. `pipe.train(recipe, out)`.

    Afterwards the pipeline holds its weights in float32.

    Args:
        resume: go on with the run in `out`. accept_changed_data: although its data files have changed since.
        progress: shows events (`andes_training.progress.Progress`). stopping: notes signals to stop.
    """
    pipeline.refuse_packed("trained")
    trainer = Trainer(pipeline, recipe, Path(out), progress, stopping)
    return trainer.run(resume=resume, accept_changed_data=accept_changed_data)
