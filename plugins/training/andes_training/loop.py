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
from andes_training.best import best_states
from andes_training.changes import put_in_changes
from andes_training.data.bad import BadSamples
from andes_training.data.fingerprint import fingerprints
from andes_training.ema import start_average, swap_average, update_average
from andes_training.feed import epoch_length, packed
from andes_training.lock import locked
from andes_training.looks import Looks
from andes_training.lora import Lora
from andes_training.processes import Processes, divided_copy, gather, losing_others_is_told
from andes_training.reading import check_stages, refuse_blind, stage_samples
from andes_training.recipe import Recipe, StageRecipe, check_start, load_recipe
from andes_training.recompute import recomputed
from andes_training.resume import check_saved
from andes_training.run import StageRun
from andes_training.state import (
    Learner,
    Saved,
    drop_leftovers,
    drop_states,
    load_state,
    read_saved,
    save_state,
    saving,
    state_name,
    states,
)
from andes_training.step import Loss, decayed, freeze, make_optimizer, seed_step, update
from andes_training.stopping import Stopped, Stopping

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


@define
class Trainer:
    """Runs a recipe on a pipeline.

    Attributes:
        pipeline: what is trained, in place.
        recipe: stages and data.
        out: folder for states and the trained checkpoint; all processes must see it.
        progress: shows what happens (in the first process), or None.
        stopping: whether a signal asked to stop, or None.
        keep_model: save a checkpoint at the end; without it only what changes of the model leave, such as adapters.
    """

    pipeline: Pipeline
    recipe: Recipe
    out: Path
    progress: Progress | None = None
    stopping: Stopping | None = None
    keep_model: bool = True
    processes: Processes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.processes = Processes.join(self.pipeline.plan.device, self.recipe.timeout)

    def run(self, *, resume: bool = True, accept_changed_data: bool = False) -> Path:
        """Train all stages, then save a checkpoint -> its folder; without `keep_model` that of the run.

        A run that was stopped, even by kill -9, goes on from its last state with identical numbers. Weights are held in
        float32 whatever precision the model was opened in; `Recipe.precision` says what is computed in.

        Args:
            accept_changed_data: go on although the data files are not those that the state was saved with.

        Raises:
            TrainingError: another run in the folder, bad data, a state of another recipe or of other data, a loss or a
                gradient that is not finite, a process that failed, a full disk. Stopped: a signal asked to stop, and a
                state is saved.
        """
        with saving(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        if not self.processes.first:
            return self._run(resume, accept_changed_data)
        with locked(self.out):
            drop_leftovers(self.out)
            return self._run(resume, accept_changed_data)

    def _run(self, resume: bool, accept_changed_data: bool) -> Path:
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
                untold = saved.untold if state else {}
                self._stage(index, position if state else Position(stage=index), state, untold)
            return self._save(self.out / "model") if self.keep_model else self.out

    def _agree(self, position: Position) -> None:
        for rank, other in enumerate(self.processes.all(position)):
            if other != position:
                raise TrainingError(
                    "the processes see different states",
                    who=str(self.out),
                    why=f"process {rank} stands at {other}, process {self.processes.rank} at {position}",
                    fix="put the folder on a file system that all of them share",
                )

    def _stage(self, index: int, position: Position, state: Path | None, untold: Mapping[str, float]) -> None:
        seed_step(self.recipe, index, -1, 0)
        work = self._prepare(index)
        if state is not None:
            load_state(state, work.learner)
        run = self._describe(work, position)
        refuse_blind(cast("VisionLanguageModel", work.learner.model), run.samples, work.recipe.stage)
        looks = self._looks(run)
        facts = self.recipe.facts(), fingerprints(work.recipe.data, self.recipe.folder)
        label = _label([stage.stage for stage in self.recipe.stages], index)
        start = {"stage": work.recipe.stage, "label": label, "steps": work.recipe.steps, "samples": len(run.samples)}
        self._tell("stage-start", position.step - bool(untold), start)
        with recomputed(work.learner.model, work.recipe.recompute):
            if not position.step:
                looks.prove(work.loss, position)
            before = kept = done = position
            if untold:
                self._look(work, looks, done, untold)
                self._keep_best(looks, done)
            for done, values in self._steps(work, run, position, looks):
                due = done.step % work.recipe.checkpoint_every == 0 or done.step == work.recipe.steps
                if due and looks.due(done.step):  # which may fail
                    figures = {name: value if type(value) is int else float(value) for name, value in values.items()}
                    self._keep(work, Saved(position=done, recipe=facts[0], data=facts[1], untold=figures))
                    kept = done
                self._look(work, looks, done, values)
                moved = (done.epoch, done.offset) != (before.epoch, before.offset)  # not within a rollout
                stop = moved and self._signal()
                if kept != done and (stop or due or looks.better):
                    self._keep(work, Saved(position=done, recipe=facts[0], data=facts[1]))
                    kept = done
                self._keep_best(looks, done)
                if kept == done:
                    self._tell("checkpoint", done.step, {})
                if stop:
                    raise _stopped(stop, self.out, done)
                before = done
            if kept != done:
                self._keep(work, Saved(position=done, recipe=facts[0], data=facts[1]))
                self._tell("checkpoint", done.step, {})
        if looks.best is not None and looks.over(done.step):
            self.processes.wait()  # the first one has named the best state
            load_state(looks.best.state(), work.learner)
            self._tell("stopped-early", done.step, {"figure": looks.best.name, "best_step": looks.best.step})
        self._finish(work)
        for bad in (run.bad, *([looks.validation.bad] if looks.validation is not None else [])):
            if skipped := bad.finish(done):
                self._tell("bad-samples", done.step, skipped)
        self._tell("stage-end", done.step, {"stage": work.recipe.stage})

    def _looks(self, run: StageRun) -> Looks:
        looks = Looks.of(run, self.recipe.folder, write=self.processes.first)
        if looks.best is not None and looks.best.anew:
            values = {"stage": run.recipe.stage, "figure": looks.best.name}
            self._tell("best-anew", run.position.step, values)
        return looks

    def _look(self, work: _Work, looks: Looks, position: Position, values: Mapping[str, float]) -> None:
        """Look where that is due, and tell a step."""
        self._tell("step", position.step, {**values, **looks.take(position, work.loss, self.processes)})

    def _keep(self, work: _Work, saved: Saved) -> None:
        spare = {best.state for best in best_states(self.out).values()}
        keep, first = self.recipe.keep_states, self.processes.first
        save_state(self.out, work.learner, saved, keep=keep, spare=spare, write=first)

    def _keep_best(self, looks: Looks, position: Position) -> None:
        """Name the state at a position as the best one, if it is; the one before need not stay then."""
        if looks.best is None or not looks.best.better:
            return
        looks.best.better = False
        if self.processes.first:
            with saving(self.out):
                looks.best.keep(state_name(position))
                spare = {best.state for best in best_states(self.out).values()}
                drop_states(self.out, self.recipe.keep_states, spare)

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
        if recipe.changes_weights:
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

    def _steps(
        self, work: _Work, run: StageRun, position: Position, looks: Looks
    ) -> Iterator[tuple[Position, dict[str, float]]]:
        """Train -> the position after each step, and its figures."""
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
            yield position, values
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
        """Write averaged weights beside the run's own: a whole checkpoint, or the adapter that learnt in their place.

        An adapter whose base is averaged too has it beside itself, as `model`.
        """
        if not work.changes:
            self._save(self.out / name)
        for change in work.changes:
            folder = self.out / name if isinstance(change, Lora) else (self.out / change.folder).with_name(name)
            if self.processes.first:
                with saving(folder):
                    change.save(self.pipeline.model, folder)
            if isinstance(change, Lora) and work.recipe.changes_weights:
                with change.beside(self.pipeline.model):
                    self._save(folder / "model")

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


def _label(names: Sequence[str], index: int) -> str:
    """A stage's name, which tells it from all others of its recipe: a later one of the same name has its number."""
    label = names[index]
    if label not in names[:index]:
        return label
    label = f"{label}-{index:02d}"
    return f"{label}-again" if label in names else label


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
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    resume: bool = True,
    accept_changed_data: bool = False,
    progress: Any = None,
    stopping: Stopping | None = None,
    keep_model: bool = True,
) -> Path:
    """Run a recipe's stages on a pipeline's model -> folder of the trained checkpoint. `pipe.train(recipe, out)`.

    Afterwards the pipeline holds its weights in float32.

    Args:
        recipe: what `load_recipe` read, or the path of its file.
        resume: go on with the run in `out`. accept_changed_data: although its data files have changed since.
        progress: shows events (`andes_training.progress.Progress`). stopping: notes signals to stop.
        keep_model: save the checkpoint; without it adapters alone are left, and the run's folder is returned.
    """
    pipeline.refuse_packed("trained")
    if isinstance(recipe, str | Path):
        recipe = load_recipe(Path(recipe))
    if not isinstance(recipe, Recipe):
        fix = "give the path of a TOML file, or what andes_training.recipe.load_recipe read"
        raise TrainingError("is no recipe", who="recipe", why=f"it is a {type(recipe).__name__}", fix=fix)
    trainer = Trainer(pipeline, recipe, Path(out), progress, stopping, keep_model)
    return trainer.run(resume=resume, accept_changed_data=accept_changed_data)
