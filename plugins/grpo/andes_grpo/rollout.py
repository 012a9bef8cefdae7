"""From prompts to packs of scored answers: sample, score, compare within the group, pack, once per rollout.

A rollout is `minibatches` optimizer steps of `prompts_per_step` prompts, gone through `epochs` times. Its answers
depend on the weights at its start, the recipe's seed and the prompts' place in the order, so a run that is resumed at
its start repeats it to the bit. Positions therefore move only at the end of a rollout, and the recipe's
`checkpoint_every` must be a multiple of a rollout's steps.

Prompt and pictures of a group are encoded once: its answers are branches of one row.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Protocol

import torch
from andes_training.data.bad import BadSample
from andes_training.data.samples import Samples
from andes_training.packing import Batch, Row, collate
from andes_training.state import saving
from attrs import evolve, frozen
from safetensors.torch import load_file, save_file
from torch import Tensor

from andes_sdk.errors import TrainingError
from andes_sdk.files import appearing_file
from andes_sdk.runtime.attention import Segment
from andes_sdk.types import Position

from .objective import advantages, equal, weight
from .policy import answer_logps
from .prompts import Completion, Order, Prompt, PromptMaker, seed_of
from .sampling import SessionSampler
from .scoring import Scorer

if TYPE_CHECKING:
    from andes_training.run import StageRun

    from andes_sdk.model import VisionLanguageModel

    from .options import Options


class Sampler(Protocol):
    """Where answers come from."""

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Per prompt one answer for each of its seeds."""


@frozen(eq=False)
class Group:
    """A prompt, its answers, and what they are worth: rewards (G,)."""

    prompt: Prompt
    answers: Sequence[Completion]
    rewards: Tensor

    @property
    def flat(self) -> bool:
        """Whether all rewards are equal, so that nothing can be learned."""
        return bool(equal(self.rewards[None]))


@frozen(eq=False)
class Rollouts:
    """The feed of one stage of one run.

    Attributes:
        sampler, scorer: where answers and rewards come from. maker, order: where prompts come from.
        reference: frozen model of the KL term, or None.
    """

    run: StageRun
    options: Options
    sampler: Sampler
    scorer: Scorer
    maker: PromptMaker
    order: Order
    reference: VisionLanguageModel | None

    @classmethod
    def of(cls, run: StageRun, options: Options) -> Rollouts:
        """Check that recipe and options fit one another, then open the sampler.

        Raises:
            TrainingError: they do not. ConfigError: a reward that no plugin brings. BackendUnavailable: no server.
        """
        _check(run, options)
        scorer, maker = Scorer.of(run.pipeline, options), PromptMaker.of(run.pipeline, options.max_answer, run.recipe)
        samples = run.samples
        if isinstance(samples, Samples):
            samples = samples.measured(run.seed, lambda s: len(maker.prompt(s, ()).inputs.ids))
            run.tell("data", {"sources": samples.facts()})
        order = Order(samples, run.seed, options.order == "file")
        return cls(run, options, _sampler(run, options), scorer, maker, order, _reference(run) if options.kl else None)

    def batches(self) -> Iterator[tuple[Position, Batch]]:
        """Packs for ever, `accumulate` of them per optimizer step; positions move at the end of a rollout."""
        position = self.run.position
        while True:
            self.run.gather()
            groups, after = self._collect(position)
            size = self.options.prompts_per_step // self.run.world
            steps = [self._packs(groups[i : i + size]) for i in range(0, len(groups), size)]
            prepared = [[self._prepared(b) for b in packs] for packs in steps]
            every = [b for _ in range(self.options.epochs) for packs in prepared for b in packs]
            for number, batch in enumerate(every, 1):
                yield (after if number == len(every) else position), batch
            position = after

    # ------------------------------------------------------------ answers

    def _collect(self, position: Position) -> tuple[list[Group], Position]:
        """The groups of one rollout that this process works on, and the position after their prompts."""
        wanted = self.options.prompts_per_step * self.options.minibatches // self.run.world
        groups: list[Group] = []
        for _ in range(1 + self.options.resample):
            missing = wanted - sum(not g.flat for g in groups)
            prompts, position = self._prompts(position, missing * self.run.world)
            groups += self._answered(prompts)
            if missing == sum(not g.flat for g in groups[-missing:]):
                break
        self._tell(groups)
        surplus = len(groups) - wanted
        dropped = [i for i, g in enumerate(groups) if g.flat][:surplus]
        return [g for i, g in enumerate(groups) if i not in dropped], position

    def _prompts(self, position: Position, count: int) -> tuple[list[Prompt], Position]:
        """This process's share of the next `count` prompts that can be used, and the position after them."""
        run = self.run
        prompts: list[Prompt] = []
        epoch, offset, unusable = position.epoch, position.offset, 0
        while len(prompts) < count:
            if offset >= len(self.order.epoch(epoch)):
                epoch, offset = epoch + 1, 0
            index = self.order.epoch(epoch)[offset]
            seeds = [seed_of(run.seed, run.index, epoch, offset, k) for k in range(self.options.group)]
            try:
                rng = Random(f"{run.seed}/{epoch}/{offset}")
                prompts.append(self.maker.prompt(self.order.samples[index], seeds, rng))
                unusable = 0
            except BadSample as error:
                run.bad.take(error, self.order.source(index), epoch=epoch, offset=offset)
                unusable += 1
                if unusable > len(self.order.epoch(epoch)):
                    raise TrainingError("no prompt of the stage can be used", who=error.who, why=str(error)) from error
            offset += 1
        return prompts[run.rank :: run.world], Position(epoch=epoch, offset=offset)

    def _answered(self, prompts: Sequence[Prompt]) -> list[Group]:
        groups = []
        for prompt, answers in zip(prompts, self.sampler.answers(prompts), strict=True):
            rewards = [self.scorer.score(prompt, a)[0] for a in answers]
            groups.append(Group(prompt, answers, torch.tensor(rewards)))
        return groups

    def _tell(self, groups: Sequence[Group]) -> None:
        """What came of a rollout, with one answer to look at."""
        example = groups[0].answers[0].text, float(groups[0].rewards[0])
        values = {"prompts": len(groups), **_figures(groups), "example": example[0], "example_reward": example[1]}
        self.run.tell("rollout", values)

    # ------------------------------------------------------------ packs

    def _packs(self, groups: Sequence[Group]) -> list[Batch]:
        """The groups of one optimizer step in `accumulate` packs of about the same size."""
        rows = [row for group in groups for row in self._rows(group)]
        figures = self._together(torch.tensor(list(_figures(groups).values())))
        packs = []
        for part in _divided(rows, self.run.recipe.accumulate // self.run.world):
            batch = collate(part)
            keep, lengths = batch.extras["keep"], batch.extras["length"]
            extras = {**batch.extras, "figures": figures}
            packs.append(evolve(batch, extras=extras, tokens=weight(self.options.normalise, keep, lengths)))
        return packs

    def _together(self, figures: Tensor) -> Tensor:
        """Their mean over all processes, each of which has as many answers."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return figures
        others: list[Tensor] = [figures] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(others, figures)
        return torch.stack(others).mean(0)

    def _rows(self, group: Group) -> Iterator[Row]:
        """A group as one row, or as several if it exceeds the recipe's `max_tokens`."""
        worth = advantages(group.rewards[None], scale=self.options.scale)[0]
        prompt = group.prompt.inputs
        room = self.run.recipe.max_tokens - len(prompt.ids) + 1
        start = used = 0
        for index, answer in enumerate(group.answers):
            if used and used + len(answer.tokens) > room:
                yield self._row(group, worth, slice(start, index))
                start, used = index, 0
            used += len(answer.tokens)
        yield self._row(group, worth, slice(start, len(group.answers)))

    def _row(self, group: Group, worth: Tensor, part: slice) -> Row:
        """The prompt but for its last token, then per answer a branch: that token and the answer but for its last."""
        prompt, answers = group.prompt.inputs, group.answers[part]
        tokens = [torch.tensor(a.tokens) for a in answers]
        keep = [a.finished or self.options.overlong != "mask" for a in answers]
        prefix = len(prompt.ids) - 1
        return Row(
            ids=torch.cat([prompt.ids[:-1], *(torch.cat([prompt.ids[-1:], t[:-1]]) for t in tokens)]),
            labels=torch.cat([torch.full((prefix,), -100), *tokens]),
            segment=Segment(prefix, tuple(len(t) for t in tokens)),
            media=prompt.media,
            extras={
                "advantage": worth[part],
                "keep": torch.tensor(keep),
                "length": torch.tensor([len(t) for t in tokens]),
                "sampled": torch.tensor([p for a in answers for p in a.logps]),
            },
        )

    def _prepared(self, batch: Batch) -> Batch:
        """With the log-probabilities that later steps compare with."""
        extras = dict(batch.extras)
        if self.options.minibatches * self.options.epochs > 1:
            extras["old"] = self._logps(self.run.pipeline.model, batch)
        if self.reference is not None:
            extras["reference"] = self._logps(self.reference, batch)
        return evolve(batch, extras=extras)

    @torch.no_grad()
    def _logps(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        with self.run.autocast():
            logps, _ = answer_logps(model, batch.to(self.run.device), self.options.temperature)
        return logps.cpu()


def _figures(groups: Sequence[Group]) -> dict[str, float]:
    """In the order of `andes_grpo.stage.FIGURES`."""
    answers = [a for g in groups for a in g.answers]
    return {
        "reward": float(torch.stack([g.rewards for g in groups]).mean()),
        "flat": sum(g.flat for g in groups) / len(groups),
        "truncated": sum(not a.finished for a in answers) / len(answers),
        "length": sum(len(a.tokens) for a in answers) / len(answers),
    }


def _divided(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """Rows in order as `count` parts of about equally many tokens, none of them empty."""
    ends = list(accumulate(len(r.ids) for r in rows))
    parts: list[list[Row]] = [[] for _ in range(count)]
    part = 0
    for index, row in enumerate(rows):
        left = len(rows) - index
        full = bool(parts[part]) and ends[index] > ends[-1] * (part + 1) / count
        if part + 1 < count and parts[part] and (full or left < count - part):
            part += 1
        parts[part].append(row)
    return parts


def _check(run: StageRun, options: Options) -> None:
    steps = options.minibatches * options.epochs
    if run.recipe.checkpoint_every % steps:
        raise TrainingError(
            f"checkpoint_every is {run.recipe.checkpoint_every}, a rollout has {steps} steps",
            who="grpo",
            why="a state can be resumed only where a rollout ends",
            fix=f"make checkpoint_every a multiple of {steps}",
        )
    if options.prompts_per_step % run.world:
        raise TrainingError(
            f"{options.prompts_per_step} prompts per step, {run.world} processes", who="grpo", fix="use a multiple"
        )
    if options.prompts_per_step < run.recipe.accumulate:
        raise TrainingError(
            f"{options.prompts_per_step} prompts of a step in {run.recipe.accumulate} packs",
            who="grpo",
            fix="lower accumulate, or raise prompts_per_step",
        )
    if options.resample and run.world > 1:
        raise TrainingError("resample works in a single process", who="grpo", fix="set resample = 0")


def _sampler(run: StageRun, options: Options) -> Sampler:
    o = options
    if not o.server:
        return SessionSampler(run.pipeline, o.max_answer, o.temperature, o.concurrency)
    from .server import ServerSampler

    return ServerSampler.connect(
        o.server,
        o.server_model,
        run.pipeline.tokenizer,
        max_answer=o.max_answer,
        temperature=o.temperature,
        timeout=o.server_timeout,
        concurrency=o.concurrency,
    )


def _reference(run: StageRun) -> VisionLanguageModel:
    """A frozen copy of the model as it was at the stage's first step, kept in the run's folder for later starts."""
    path = run.out / f"reference-{run.index:02d}.safetensors"
    model = run.pipeline.model
    frozen_copy = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})
    frozen_copy.requires_grad_(False).eval()
    if run.position.step == 0:
        if run.rank == 0:
            _write(path, {n: p.detach().contiguous() for n, p in model.named_parameters()})
        return frozen_copy
    try:
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in frozen_copy.named_parameters():
                parameter.copy_(tensors[name])
    except Exception as error:
        raise TrainingError(
            "the reference of the KL term cannot be read", who=str(path), why=str(error), fix="start the run anew"
        ) from error
    return frozen_copy


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    with saving(path), appearing_file(path) as temporary:
        save_file(tensors, temporary)
