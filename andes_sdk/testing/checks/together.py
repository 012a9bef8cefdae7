"""Several conversations decoded together: each gets what it gets alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from andes_sdk.runtime.decoder import Autoregressive
from andes_sdk.runtime.engine import Conversation, Engine, Watch, raise_errors
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.runtime.policy import KeepAll
from andes_sdk.testing.checks.collections import backends_of, compiled_of, tolerance_of
from andes_sdk.testing.checks.decoding import Overseer
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.testing.registry import check
from andes_sdk.testing.require import require, require_close
from andes_sdk.types import Inputs

if TYPE_CHECKING:
    from andes_sdk.testing.subject import Subject

LENGTHS = (4, 12, 9)
"""Tokens of the answers to one prompt: the first goes while the others stay."""
LATE = 10
"""Tokens of the answer to another prompt, which takes the place of the one that went."""


@frozen(eq=False)
class Job:
    """A prompt, and the answers that are asked for together."""

    inputs: Inputs
    options: Sequence[GenerationOptions]
    logits: list[list[Tensor]] = field(init=False)

    @logits.default
    def _none_yet(self) -> list[list[Tensor]]:
        return [[] for _ in self.options]

    def watches(self) -> list[Watch]:
        """What notes the logits of each answer."""
        return [lambda logits, token, to=to: to.append(logits.clone()) for to in self.logits]  # type: ignore[misc]


def _alone(engine: Engine, jobs: Sequence[Job]) -> list[Conversation]:
    """Each answer on its own."""
    made = []
    for job in jobs:
        for option, watch in zip(job.options, job.watches(), strict=True):
            made.append(engine.join(job.inputs, option, watch=watch))
            engine.run()
    raise_errors(made)
    return made


def _together(engine: Engine, jobs: Sequence[Job]) -> list[Conversation]:
    """Answers of one prompt share it; when one of them has ended, the next prompt joins those that go on."""
    made: list[Conversation] = []
    for job in jobs:
        made += engine.join_many(job.inputs, job.options, job.watches())
        while engine.active and not any(one.finish for one in made):
            engine.step()
    engine.run()
    raise_errors(made)
    return made


def _lively(subject: Subject, rows: Sequence[int]) -> list[Job]:
    """Prompts of so many tokens, and answers that differ."""
    heats = ((0.0, 0), (1.0, 3), (0.7, 8))
    options = [
        GenerationOptions(max_tokens=n, temperature=t, top_k=4, seed=s)
        for n, (t, s) in zip(LENGTHS, heats, strict=True)
    ]
    first, second = (plain_inputs(subject.pipe, n, seed=n) for n in rows)
    return [Job(first, options), Job(second, [GenerationOptions(max_tokens=LATE)])]


def _tokens(made: Sequence[Conversation]) -> list[list[int]]:
    return [list(one.tokens) for one in made]


@check("decoder", "several answers to one prompt are those of each alone, and the decoder remembers none of them")
def _decoder(subject: Subject) -> None:
    def new() -> Any:
        return subject.assembly.slot("decoder", model=subject.pipe.model)

    engine, used, jobs = evolve(subject.pipe.engine(), ends=()), new(), _lively(subject, (24, 15))
    wanted = _tokens(_alone(evolve(subject.baseline().engine(), ends=()), jobs))
    got = _tokens(_together(evolve(engine, decoder=used), jobs))
    for number, (mine, plain) in enumerate(zip(got, wanted, strict=True)):
        require(mine == plain, f"answer {number} of those decoded together is {mine}, alone by the default {plain}")
    asked = []
    for decoder in (used, new()):
        overseer = Overseer(decoder)
        _alone(evolve(engine, decoder=overseer), jobs[-1:])
        asked.append(overseer.asked)
    for after, before in zip(*asked, strict=True):
        what = f"proposes {after[1]} after other conversations, a new decoder {before[1]}"
        require(after == before, what)


@check("cache_policy", "conversations decoded together get the answers and keep the rows of each alone")
def _policy(subject: Subject) -> None:
    engine, jobs = evolve(subject.pipe.engine(), ends=()), _lively(subject, (300, 90))

    def new() -> Any:
        return subject.assembly.slot("cache_policy", model=subject.pipe.model, rows=None)

    each = [Job(job.inputs, [option]) for job in jobs for option in job.options]
    wanted = [one for job in each for one in _alone(evolve(engine, policy=new()), [job])]
    got = _together(evolve(engine, policy=new()), jobs)
    for number, (mine, own) in enumerate(zip(got, wanted, strict=True)):
        kept, rows = mine.session.stats.rows, own.session.stats.rows
        require(kept == rows, f"conversation {number} keeps {kept} rows beside others, {rows} alone")
        (said, text) = _tokens([mine, own])
        require(said == text, f"conversation {number} decodes {said} beside others, {text} alone")


@frozen
class Script:
    """A constraint that allows one text alone: any backend can be compared, whatever it would have said."""

    text: Sequence[int]
    size: int

    def allowed(self, answer: Sequence[int]) -> Tensor:
        """(V,) True for the next token of the text."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[self.text[len(answer)]] = True
        return mask


@check("backends", "conversations decoded together get the logits of each alone")
def _backend(subject: Subject) -> None:
    pipe = subject.pipe
    size = pipe.model.text.vocab_size
    for backend in backends_of(subject):
        engine = Engine(compiled_of(subject, backend), KeepAll(), Autoregressive(), (), pipe.model.text.max_positions)
        found = []
        for run in (_alone, _together):
            texts = [plain_inputs(pipe, n, seed=n).ids.tolist() for n in (*LENGTHS, LATE)]
            *several, late = (GenerationOptions(max_tokens=len(t), constraint=Script(t, size)) for t in texts)
            jobs = [Job(pipe.prepare(conversation(0)), several), Job(pipe.prepare(conversation(1)), [late])]
            for one in run(engine, jobs):
                one.session.close()
            found.append([torch.stack(logits) for job in jobs for logits in job.logits])
        for number, (alone, beside) in enumerate(zip(*found, strict=True)):
            message = f"backend {backend.name!r}: logits of conversation {number} beside others, against it alone"
            require_close(beside, alone, tolerance_of(backend), message)
