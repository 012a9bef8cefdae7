"""Planted bugs in cache policies, decoders, stages, backends and the other collections: the kit names each of them."""

from __future__ import annotations

import random

import pytest
import torch
from andes_packing.formats import FORMATS
from andes_training.loss import next_token_loss
from andes_training.testing.reference import ReferenceStage
from andes_training.testing.stages import OwnStage, Stage
from attrs import define, evolve, field, frozen

from andes_sdk import hookimpl
from andes_sdk.errors import SessionError
from andes_sdk.runtime.session import TorchSession
from andes_sdk.runtime.torch_backend import CompiledTorch
from andes_sdk.runtime.tree import Step
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import (
    ReferenceBackend,
    ReferenceBenchmark,
    ReferenceCompressor,
    ReferenceDecoder,
    ReferenceExporter,
    ReferenceFilter,
    ReferencePolicy,
    ReferenceReward,
)
from andes_sdk.testing.reference.collections import Answers, Contains, NoEmptyAnswers, Rounding, Shapes
from andes_sdk.testing.reference.running import PromptLookup, Recent, Renamed, Words
from andes_sdk.types import Compressed, Position, Proposal

SEEN = []
MEMORIES, CALLS = {}, []


def each(kept, change):
    """Every list of indices of every layer, changed."""
    return [layer and [change(index) for index in layer] for layer in kept]


class OverBudget(Recent):
    """Keeps one row more than it may."""

    def budget(self, seen):
        return min(seen, self.rows - 1) * self.heads


class CountsOneHead(Recent):
    """States the rows of a single head as its budget."""

    def budget(self, seen):
        return min(seen, self.rows)


class Unsorted(Recent):
    """Returns rows in order of importance."""

    def keep(self, cache):
        return each(super().keep(cache), lambda index: index.flip(0))


class PastTheEnd(Recent):
    """Counts positions instead of rows."""

    def keep(self, cache):
        return each(super().keep(cache), lambda index: index + 1)


class OneListForAll(Recent):
    """Returns one list of indices, not one per head."""

    def keep(self, cache):
        return [layer and layer[:1] for layer in super().keep(cache)]


class FirstLayerOnly(Recent):
    """Answers for one layer."""

    def keep(self, cache):
        return super().keep(cache)[:1]


class LosesRows(Recent):
    """Evicts although there is room."""

    def due(self, seen, held, reading):
        return seen > 4

    def keep(self, cache):
        rows = [len(layer.positions[0]) for layer in cache.layers]
        recent = [torch.arange(max(n // 2, n - self.rows), n) for n in rows]
        return [[index] * len(layer.keys) for index, layer in zip(recent, cache.layers, strict=True)]


class DropsNewest(Recent):
    """Leaves out the row that was just committed."""

    def keep(self, cache):
        return each(super().keep(cache), lambda index: index[:-1])


class Remembers(Recent):
    """Keeps fewer rows once it has seen another session's layers."""

    def keep(self, cache):
        SEEN.append(cache)
        spare = max(2, self.rows - len(SEEN) // 4)
        return each(super().keep(cache), lambda index: index[-spare:])


@define(eq=False)
class Counter:
    """A keeper that counts how often it was asked, and keeps fewer rows with time."""

    policy: Recent
    asked: int = 0

    def score(self, layer, hidden):
        return None

    def due(self, seen, held, reading):
        return self.policy.due(seen, held, reading)

    def keep(self, cache):
        self.asked += 1
        return each(self.policy.keep(cache), lambda index: index[self.asked // 2 % 10 :])

    def state(self):
        return {"asked": torch.tensor(self.asked)}


class SharedKeeper(Recent):
    """Gives every session the same memory."""

    keepers = {}  # noqa: RUF012

    def open(self, state=None):
        return self.keepers.setdefault(self, Counter(Recent(self.rows, self.first, self.heads)))


class ForgetsState(Recent):
    """Starts anew where a session goes on."""

    def open(self, state=None):
        return Counter(Recent(self.rows, self.first, self.heads))


class TellsNoState(Recent):
    """Has a memory, and does not give it away."""

    def open(self, state=None):
        class Silent(Counter):
            def state(self):
                return {}

        return Silent(Recent(self.rows, self.first, self.heads), int((state or {}).get("asked", 0)))


class KeepsItsState(Recent):
    """A policy with a memory that does all of it right."""

    def open(self, state=None):
        return Counter(Recent(self.rows, self.first, self.heads), int((state or {}).get("asked", 0)))


class Scribbles(Recent):
    """Normalises the keys it is shown, in place."""

    def keep(self, cache):
        for layer in cache.layers:
            for key in layer.keys:
                key.div_(key.norm(dim=-1, keepdim=True))
        return super().keep(cache)


class Shuffles(Recent):
    """Keeps a random choice."""

    def keep(self, cache):
        rows = len(cache.layers[0].positions[0])
        chosen = sorted([*random.sample(range(rows - 1), min(rows, self.rows) - 1), rows - 1])
        return [[torch.tensor(chosen)] * len(layer.keys) for layer in cache.layers]


class LastPart(Words):
    """Keeps what it read last."""

    def read(self, tokens, rows):
        self.tokens = list(tokens)


class Forgets(PromptLookup):
    """Its draft forgets the prompt."""

    def open(self):
        return LastPart()


class SharedWords(Words):
    """Its fork is a second name for the same list."""

    def fork(self):
        return SharedWords(self.tokens)


class SharesForks(PromptLookup):
    """Forks share memory."""

    def open(self):
        return SharedWords()


class OneForAll(PromptLookup):
    """Gives all conversations the same memory."""

    drafts = {}  # noqa: RUF012

    def open(self):
        return self.drafts.setdefault(self, Words())


class PointsForward(PromptLookup):
    """Says children before their parents."""

    def propose(self, drafts, last):
        return [Proposal(p.tokens, tuple(range(1, len(p.tokens) + 1))) for p in super().propose(drafts, last)]


class OneProposal(PromptLookup):
    """Answers for the first conversation alone."""

    def propose(self, drafts, last):
        return super().propose(drafts, last)[:1]


class BeyondVocabulary(PromptLookup):
    """Proposes a token that does not exist."""

    def propose(self, drafts, last):
        return [Proposal((*p.tokens, 10**6)) for p in super().propose(drafts, last)]


class ProposesTensors(PromptLookup):
    """Proposes what came out of torch."""

    def propose(self, drafts, last):
        return [Proposal(tuple(torch.tensor(p.tokens))) for p in super().propose(drafts, last)]


class ListensAround(PromptLookup):
    """Once it serves several conversations, it also guesses what the others said."""

    heard = {}  # noqa: RUF012

    def propose(self, drafts, last):
        heard = self.heard.setdefault(id(self), [])
        if len(drafts) > 1:
            heard += [token for draft, token in zip(drafts, last, strict=True) for token in (*draft.tokens, token)]
        return [
            Proposal(tuple(self.guess([*heard, *draft.tokens, token])))
            for draft, token in zip(drafts, last, strict=True)
        ]


class CountsSeats(PromptLookup):
    """Gives as many proposals as it ever had conversations."""

    seats = {}  # noqa: RUF012

    def propose(self, drafts, last):
        made = super().propose(drafts, last)
        seats = self.seats[id(self)] = max(len(made), self.seats.get(id(self), 0))
        return [*made, *[Proposal()] * (seats - len(made))]


class ScalesRows(Words):
    """Normalises what it is told, in place."""

    @torch.inference_mode()
    def read(self, tokens, rows):
        super().read(tokens, rows)
        rows.logits.neg_()


class WritesToRows(PromptLookup):
    """Its drafts change the rows that they read."""

    def open(self):
        return ScalesRows()


class Thaws(Stage):
    """Trains the encoder behind the recipe's back."""

    def loss(self, model, batch):
        model.vision_encoder.requires_grad_(True)
        return next_token_loss(model, batch)


class NamesNothing(Stage):
    """Gives a rate to a module that does not exist."""

    def rates(self, model):
        return {"mlp": self.rate, "projector": self.rate}


class ZeroRate(Stage):
    """Freezes by a rate of zero."""

    def rates(self, model):
        return {"mlp": self.rate, "language_model": 0.0}


class Sums(Stage):
    """Sums over tokens instead of taking their mean."""

    def loss(self, model, batch):
        value, figures = next_token_loss(model, batch)
        return value * batch.tokens, figures


class PerSample(Stage):
    """Adds a term that depends on how many samples the pack holds."""

    def loss(self, model, batch):
        value, figures = next_token_loss(model, batch)
        return value / batch.samples, figures


class Climbs(Stage):
    """Has the right value and the opposite gradient."""

    def loss(self, model, batch):
        value, figures = next_token_loss(model, batch)
        return 2 * value.detach() - value, figures


class TensorFigures(Stage):
    """Logs tensors, which keep the graph alive."""

    def loss(self, model, batch):
        value, _ = next_token_loss(model, batch)
        return value, {"loss": value}


class StepsInside(Stage):
    """Updates a weight while it computes the loss."""

    def loss(self, model, batch):
        with torch.no_grad():
            next(model.mlp.parameters()).mul_(0.999)
        return next_token_loss(model, batch)


class RandomLoss(Stage):
    """Drops features at random."""

    def loss(self, model, batch):
        value, figures = next_token_loss(model, batch)
        return value * (1 + 0.01 * torch.rand(())), figures


class StartsAnew(OwnStage):
    """Its feed begins at the beginning wherever the run stands."""

    def feed(self, run):
        yield from super().feed(evolve(run, position=Position()))


class TakesAnything(OwnStage):
    """Makes conversations of lines it cannot read."""

    def conversations(self, entry):
        return [entry.get("messages", [{"role": "assistant", "content": "?"}])]


class BreaksWeights(Rounding):
    """Divides by a maximum of zero."""

    @torch.no_grad()
    def compress(self, model, **options):
        for weight in model.parameters():
            weight.div_(weight - weight)
        return Compressed(report={"bits": 1})


class Silent(Rounding):
    """Tells nothing."""

    def compress(self, model, **options):
        return Compressed()


class OtherCodes(Rounding):
    """Gives codes that are not what the model computes with."""

    def compress(self, model, **options):
        name, weight = next((n, p) for n, p in model.named_parameters() if p.ndim == 2)
        codes = FORMATS["w8"].quantise(weight.detach().numpy() + 1)
        return Compressed(codes={name: codes}, report={"bits": 8})


class WrongLogits(Renamed):
    """Computes with rounded weights and does not say so."""

    def compile(self, model, **run):
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight * 64).round() / 64)
        return super().compile(model, **run)


class FallsBack(Renamed):
    """Uses the CPU where the wanted device is absent."""

    def compile(self, model, *, device, **run):
        return super().compile(model, device="cpu", **run)


class MixesRows(CompiledTorch):
    """Gives a session the rows of another one."""

    def run(self, passes, embeds):
        rows = super().run(passes, embeds)
        first = rows[0]
        return [evolve(r, logits=first.logits[:1].expand_as(r.logits)) for r in rows] if len(rows) > 1 else rows


class ForgetsLogits(CompiledTorch):
    """Gives logits of every row, whatever a work asks for."""

    def run(self, passes, embeds):
        return super().run([(s, evolve(w, logits=None), step) for s, w, step in passes], embeds)


class ShiftsTaps(CompiledTorch):
    """Shows the rows that leave a layer."""

    def _tap(self, seen):
        inner = super()._tap(seen)
        return inner and (lambda layer, hidden: inner(max(layer - 1, 0), hidden))


class LosesRow(CompiledTorch):
    """Restores all rows but the last."""

    def restore(self, state, policy):
        session = super().restore(state, policy)
        session.reset([[count - 1 for count in counts] for counts in session.mark()])
        return session


class BlamesNobody(CompiledTorch):
    """Does not say which session made a step fail."""

    def step(self, work):
        try:
            return super().step(work)
        except SessionError as error:
            error.session = None
            raise


class SameSeats(CompiledTorch):
    """Takes a pass of as many sessions as an earlier one for the same sessions, a token later."""

    def run(self, passes, embeds):
        if len(passes) > 1 and all(len(work.tokens) == 1 for _, work, _ in passes):
            seats = self.__dict__.setdefault("seats", {})
            now = [at + 1 for at in seats.get(len(passes), [])] or [step.positions for _, _, step in passes]
            passes = [(s, w, Step(at, step.visible)) for (s, w, step), at in zip(passes, now, strict=True)]
            seats[len(passes)] = now
        return super().run(passes, embeds)


class KeepsReplays(TorchSession):
    """Leaves the rows of a replay where it put them."""

    def _replay(self, embeds, look):
        undo, self.undo = self.undo, lambda moment: self._tree.cut(0)
        try:
            super()._replay(embeds, look)
        finally:
            self.undo = undo


class NoReplays(TorchSession):
    """Does not know what a replay is."""

    def _replay(self, embeds, look):
        pass


class ReplaysInPlace(TorchSession):
    """Reads a replay from the first position on."""

    def _replay(self, embeds, look):
        length, self.length = self.length, 0
        try:
            super()._replay(embeds, look)
        finally:
            self.length = length


class NoQueries(TorchSession):
    """Never notes queries of single rows."""

    def attend(self, step, reading, layer, q, k, v, scale):
        out = super().attend(step, reading, layer, q, k, v, scale)
        if not reading and self.keeping.queries[layer]:
            self.keeping.queries[layer][-1] = torch.zeros_like(self.keeping.queries[layer][-1])
        return out


class ForgetsTree(TorchSession):
    """Takes every tree for a chain."""

    def begin(self, work):
        return super().begin(evolve(work, parents=None))


class KeepsFailures(TorchSession):
    """Leaves the rows of a step that failed."""

    def undo(self, moment):
        pass


class SharedMemory(TorchSession):
    """Its fork stores rows where the original does."""

    def fork(self):
        forked = super().fork()
        forked._layers = self._layers
        return forked


def compiling(part):
    """A backend whose compiled models are of this class, or have sessions of it."""
    compiled, session = (part, TorchSession) if issubclass(part, CompiledTorch) else (CompiledTorch, part)

    class Special(compiled):
        def empty(self, policy, keeper):
            return session(self, policy, keeper)

    class Backend(Renamed):
        def compile(self, model, **run):
            plain = super().compile(model, **run)
            return Special(plain.model, taps=plain.taps)

    Backend.__name__ = part.__name__
    return Backend


class Moody(Contains):
    """Rolls dice."""

    def score(self, sample, answer):
        return random.random()


class Verdict(Contains):
    """Gives a bool."""

    def score(self, sample, answer):
        return sample["answer"] in answer


class ByAnswer(Contains):
    """Remembers scores by answer, whatever the sample."""

    def score(self, sample, answer):
        return MEMORIES.setdefault(id(self), {}).setdefault(answer, super().score(sample, answer))


class AlwaysHalf(Contains):
    """Likes everything equally."""

    def score(self, sample, answer):
        return 0.5


class Backwards(Contains):
    """Pays for wrong answers."""

    def score(self, sample, answer):
        return -super().score(sample, answer)


class Tires(Contains):
    """Pays less after its hundredth score."""

    def score(self, sample, answer):
        CALLS.append(1)
        return super().score(sample, answer) * (1.0 if len(CALLS) < 100 else 0.9)


class Swallows(NoEmptyAnswers):
    """Drops samples without a word."""

    def apply(self, samples):
        return ((s, reason) for s, reason in super().apply(samples) if reason is None)


class Edits(NoEmptyAnswers):
    """Improves the samples it should only judge."""

    def apply(self, samples):
        for sample, reason in super().apply(samples):
            sample["messages"][-1]["content"] += "."
            yield sample, reason


@define
class OncePerLife(NoEmptyAnswers):
    """Drops what it saw before, in an earlier run too."""

    seen: set = field(factory=set)

    def apply(self, samples):
        for sample in samples:
            known = sample["id"] in self.seen
            self.seen.add(sample["id"])
            yield sample, "seen before" if known else None


class Counts(Answers):
    """Gives whole numbers and a text."""

    def run(self, pipeline, *, limit=None):
        return {"answered": limit, "comment": "well done"}


class Litters(Shapes):
    """Leaves a file beside the one it was asked for."""

    def export(self, pipeline, path):
        told = super().export(pipeline, path)
        path.with_suffix(".log").write_text("done")
        return told


class ExportsInPlace(Shapes):
    """Rounds the model on its way out."""

    def export(self, pipeline, path):
        for weight in pipeline.model.parameters():
            weight.data = weight.data.half().float()
        return super().export(pipeline, path)


class TellsPaths(Shapes):
    """Reports what JSON cannot hold."""

    def export(self, pipeline, path):
        return {**super().export(pipeline, path), "path": path}


BUDGET = "its budget is a number of rows, or none, and it keeps to it"
INDICES = "keeps ascending, unique indices of rows that exist"
SESSIONS = "sessions do not disturb one another, and a used policy equals a new one"
FORKED = "a draft and its fork have nothing to do with one another, nor have two drafts"
PROPOSALS = "proposals are trees of tokens, one for each conversation"
LOGITS_AND_TAPS = "logits and tapped rows equal the torch backend's"
TOGETHER = "several sessions in one step equal each alone, and an error in it changes none"
SHOWN = "a policy sees rows, queries, scores and replays as torch shows them, and a replay leaves no trace"
BESIDE = "conversations decoded together get the logits of each alone"
ANSWERS = "several answers to one prompt are those of each alone, and the decoder remembers none of them"
FORKS = "a fork and a restored session go on as the original, to the bit, and apart from it"
PLANTED = [
    (OverBudget, "cache_policy", BUDGET),
    (CountsOneHead, "cache_policy", BUDGET),
    (Unsorted, "cache_policy", INDICES),
    (PastTheEnd, "cache_policy", INDICES),
    (OneListForAll, "cache_policy", INDICES),
    (FirstLayerOnly, "cache_policy", INDICES),
    (LosesRows, "cache_policy", "within its budget it equals full attention"),
    (DropsNewest, "cache_policy", "a session decodes on after eviction, within the budget"),
    (Remembers, "cache_policy", SESSIONS),
    (SharedKeeper, "cache_policy", SESSIONS),
    (ForgetsState, "cache_policy", "a fork and a restored session keep the same rows as the original"),
    (TellsNoState, "cache_policy", "a fork and a restored session keep the same rows as the original"),
    (Scribbles, "cache_policy", "a session decodes on after eviction, within the budget"),
    (Shuffles, "cache_policy", "the same rows are judged alike"),
    (Forgets, "decoder", "a draft remembers what was committed, the prompt first, in parts or at once"),
    (SharesForks, "decoder", FORKED),
    (OneForAll, "decoder", FORKED),
    (PointsForward, "decoder", PROPOSALS),
    (OneProposal, "decoder", PROPOSALS),
    (BeyondVocabulary, "decoder", PROPOSALS),
    (ProposesTensors, "decoder", PROPOSALS),
    (ListensAround, "decoder", ANSWERS),
    (CountsSeats, "decoder", ANSWERS),
    (WritesToRows, "decoder", "greedy text is the default decoder's"),
    (Thaws, "training_stages", "only the modules it names get gradients, and the loss changes no weight"),
    (NamesNothing, "training_stages", "learning rates are positive and name modules that exist"),
    (ZeroRate, "training_stages", "learning rates are positive and name modules that exist"),
    (Sums, "training_stages", "the loss of a pack is the mean over the tokens of its samples"),
    (PerSample, "training_stages", "the loss of a pack is the mean over the tokens of its samples"),
    (Climbs, "training_stages", "a few steps on one batch lower the loss"),
    (TensorFigures, "training_stages", "the loss is a finite scalar with a gradient, the figures are numbers"),
    (StepsInside, "training_stages", "only the modules it names get gradients, and the loss changes no weight"),
    (RandomLoss, "training_stages", "the same batch gives the same loss"),
    (StartsAnew, "training_stages", "a feed goes on from any of its positions with the same batches"),
    (TakesAnything, "training_stages", "conversations of a sample are lists of messages, and other lines are refused"),
    (BreaksWeights, "compressors", "the compressed model computes, and facts are told"),
    (Silent, "compressors", "the compressed model computes, and facts are told"),
    (OtherCodes, "compressors", "codes are the weights of the compressed model, and ranges can be"),
    (WrongLogits, "backends", LOGITS_AND_TAPS),
    (compiling(ForgetsLogits), "backends", LOGITS_AND_TAPS),
    (compiling(ShiftsTaps), "backends", LOGITS_AND_TAPS),
    (compiling(ForgetsTree), "backends", LOGITS_AND_TAPS),
    (compiling(MixesRows), "backends", TOGETHER),
    (compiling(BlamesNobody), "backends", TOGETHER),
    (compiling(KeepsFailures), "backends", TOGETHER),
    (compiling(LosesRow), "backends", FORKS),
    (compiling(SharedMemory), "backends", FORKS),
    (compiling(SameSeats), "backends", BESIDE),
    (compiling(SharedMemory), "backends", BESIDE),
    (compiling(KeepsReplays), "backends", SHOWN),
    (compiling(NoReplays), "backends", SHOWN),
    (compiling(ReplaysInPlace), "backends", SHOWN),
    (compiling(NoQueries), "backends", SHOWN),
    (FallsBack, "backends", "an absent device is refused"),
    (Moody, "rewards", "a score is a finite number, the same each time"),
    (ByAnswer, "rewards", "a score depends on sample and answer alone, early and late, in any order"),
    (Tires, "rewards", "a score depends on sample and answer alone, early and late, in any order"),
    (AlwaysHalf, "rewards", "answers are not all worth the same"),
    (Backwards, "rewards", "the right answer is worth no less than a wrong one"),
    (Verdict, "rewards", "a score is a finite number, the same each time"),
    (Swallows, "data_filters", "every sample comes out once, unchanged, kept or with a reason"),
    (Edits, "data_filters", "every sample comes out once, unchanged, kept or with a reason"),
    (OncePerLife, "data_filters", "takes a stream, and decides alike each time"),
    (Counts, "benchmarks", "a short run gives finite numbers"),
    (Litters, "exporters", "writes its file and nothing beside it, and leaves the model as it was"),
    (ExportsInPlace, "exporters", "writes its file and nothing beside it, and leaves the model as it was"),
    (TellsPaths, "exporters", "writes its file and nothing beside it, and leaves the model as it was"),
]


def plugin_with(part):
    """A reference plugin that brings this part instead of its own."""

    @frozen(eq=False, kw_only=True)
    class Policy(ReferencePolicy):
        @hookimpl
        def andes_cache_policy(self, model):
            return part(self.rows, self.first, model.text.layers * model.text.kv_heads)

    @frozen(eq=False, kw_only=True)
    class Decoder(ReferenceDecoder):
        @hookimpl
        def andes_decoder(self, model):
            return part(self.depth)

    @frozen(eq=False, kw_only=True)
    class Stages(ReferenceStage):
        @hookimpl
        def andes_training_stages(self):
            return [part(self.rate)]

    @frozen(eq=False, kw_only=True)
    class Compressors(ReferenceCompressor):
        @hookimpl
        def andes_compressors(self):
            return [part(self.bits)]

    @frozen(eq=False, kw_only=True)
    class Backends(ReferenceBackend):
        @hookimpl
        def andes_backends(self):
            return [part()]

    @frozen(eq=False, kw_only=True)
    class Rewards(ReferenceReward):
        @hookimpl
        def andes_rewards(self):
            return [part()]

    @frozen(eq=False, kw_only=True)
    class Filters(ReferenceFilter):
        _kept = part() if issubclass(part, NoEmptyAnswers) else None

        @hookimpl
        def andes_data_filters(self):
            return [self._kept]

    @frozen(eq=False, kw_only=True)
    class Benchmarks(ReferenceBenchmark):
        @hookimpl
        def andes_benchmarks(self):
            return [part()]

    @frozen(eq=False, kw_only=True)
    class Exporters(ReferenceExporter):
        @hookimpl
        def andes_exporters(self):
            return [part()]

    kinds = {
        Recent: Policy, PromptLookup: Decoder, Stage: Stages, Rounding: Compressors, Renamed: Backends,
        Contains: Rewards, NoEmptyAnswers: Filters, Answers: Benchmarks,
        Shapes: Exporters,
    }  # fmt: skip
    return next(plugin for parent, plugin in kinds.items() if issubclass(part, parent))


@pytest.mark.parametrize(("part", "kind", "check"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_bug_fails_the_check_that_names_it(part, kind, check):
    SEEN.clear()
    results = run_checks(plugin_with(part), kinds=[kind])
    failed = {r.id: r.reason for r in results if r.status == "failed"}
    assert f"{kind}: {check}" in failed
    assert len(failed) < len(results), f"everything fails, the bug is not singled out: {failed}"


def test_a_policy_with_a_memory_that_is_restored_passes():
    results = run_checks(plugin_with(KeepsItsState), kinds=["cache_policy"])
    assert {r.id: r.reason for r in results if r.status == "failed"} == {}
