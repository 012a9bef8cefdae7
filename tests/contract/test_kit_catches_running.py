"""Planted bugs in cache policies, decoders, stages, backends and the other collections: the kit names each of them."""

from __future__ import annotations

import random

import pytest
import torch
from andes_training.loss import next_token_loss
from andes_training.testing.reference import ReferenceStage
from andes_training.testing.stages import OwnStage, Stage
from attrs import define, evolve, field, frozen

from andes_sdk import hookimpl
from andes_sdk.formats import Grid, Integer
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import (
    ReferenceBackend,
    ReferenceBenchmark,
    ReferenceCompressor,
    ReferenceDecoder,
    ReferenceExporter,
    ReferenceFilter,
    ReferenceFormat,
    ReferencePolicy,
    ReferenceReward,
)
from andes_sdk.testing.reference.collections import Answers, Contains, NoEmptyAnswers, Rounding, Shapes
from andes_sdk.testing.reference.running import PromptLookup, Recent, Renamed
from andes_sdk.types import Position

SEEN = []


class OverBudget(Recent):
    """Keeps one row more than it may."""

    def budget(self, rows):
        return min(rows, self.rows - 1)


class Unsorted(Recent):
    """Returns rows in order of importance."""

    def keep(self, layer):
        kept = super().keep(layer)
        return kept and [k.flip(0) for k in kept]


class PastTheEnd(Recent):
    """Counts positions instead of rows."""

    def keep(self, layer):
        kept = super().keep(layer)
        return kept and [k + 1 for k in kept]


class OneListForAll(Recent):
    """Returns one list of indices, not one per head."""

    def keep(self, layer):
        kept = super().keep(layer)
        return kept and kept[:1]


class LosesRows(Recent):
    """Evicts although there is room."""

    def keep(self, layer):
        rows = len(layer.positions[0])
        return [torch.arange(rows // 2, rows)] * len(layer.keys) if rows > 4 else None


class Remembers(Recent):
    """Keeps fewer rows once it has seen another session's layers."""

    def keep(self, layer):
        SEEN.append(layer)
        spare = max(2, self.rows - len(SEEN) // 4)
        rows = len(layer.positions[0])
        return [torch.arange(rows - spare, rows)] * len(layer.keys) if rows > spare else None


class Scribbles(Recent):
    """Normalises the keys it is shown, in place."""

    def keep(self, layer):
        for key in layer.keys:
            key.div_(key.norm(dim=-1, keepdim=True))
        return super().keep(layer)


class Shuffles(Recent):
    """Keeps a random choice."""

    def keep(self, layer):
        rows = len(layer.positions[0])
        chosen = sorted(random.sample(range(rows), min(rows, self.rows)))
        return [torch.tensor(chosen)] * len(layer.keys)


class AcceptsTheLikeliest(PromptLookup):
    """Verifies guesses against the arg-max: right when greedy, another text when sampling."""

    def decode(self, session, logits, sampler, history):
        while True:
            accepted = [sampler.pick(logits, session.length, history)]
            guess = self.guess([*history, *accepted])
            scores, _ = session.extend([*accepted, *guess])
            for i, token in enumerate(guess):
                if int(scores[i].argmax()) != token:
                    break
                accepted.append(token)
            session.commit(list(range(len(accepted))))
            logits = scores[len(accepted) - 1]
            history += accepted
            yield accepted


class OffByOne(PromptLookup):
    """Asks the sampler for the position before: other noise."""

    def decode(self, session, logits, sampler, history):
        class Earlier:
            def pick(self, logits, position, history):
                return sampler.pick(logits, position - 1, history)

        yield from super().decode(session, logits, Earlier(), history)


class TrustsItself(PromptLookup):
    """Accepts every guess unverified."""

    def decode(self, session, logits, sampler, history):
        while True:
            accepted = [sampler.pick(logits, session.length, history)]
            accepted += self.guess([*history, *accepted])
            scores, _ = session.extend(accepted)
            session.commit()
            logits = scores[-1]
            history += accepted
            yield accepted


class LeavesRows(PromptLookup):
    """Looks one token ahead and never cleans up."""

    def decode(self, session, logits, sampler, history):
        while True:
            token = sampler.pick(logits, session.length, history)
            history.append(token)
            scores, _ = session.extend([token, 0], [-1, 0])
            yield [token]
            session.commit([0])
            logits = scores[0]


class ForgetsHistory(PromptLookup):
    """Yields without writing down."""

    def decode(self, session, logits, sampler, history):
        yield from super().decode(session, logits, sampler, list(history))


class Empties(PromptLookup):
    """Yields an empty list between tokens."""

    def decode(self, session, logits, sampler, history):
        for tokens in super().decode(session, logits, sampler, history):
            yield tokens
            yield []


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
        return {"bits": 1}


class Silent(Rounding):
    """Tells nothing."""

    def compress(self, model, **options):
        return {}


class WrongLogits(Renamed):
    """Computes with rounded weights and does not say so."""

    def compile(self, model, *, device, dtype):
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_((weight * 64).round() / 64)
        return super().compile(model, device=device, dtype=dtype)


class FallsBack(Renamed):
    """Uses the CPU where the wanted device is absent."""

    def compile(self, model, *, device, dtype):
        return super().compile(model, device="cpu", dtype=dtype)


class Moody(Contains):
    """Rolls dice."""

    def score(self, sample, answer):
        return random.random()


class Verdict(Contains):
    """Gives a bool."""

    def score(self, sample, answer):
        return sample["answer"] in answer


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


PLANTED = [
    (OverBudget, "cache_policy", "keeps to its budget"),
    (Unsorted, "cache_policy", "keeps ascending, unique indices of rows that exist"),
    (PastTheEnd, "cache_policy", "keeps ascending, unique indices of rows that exist"),
    (OneListForAll, "cache_policy", "keeps ascending, unique indices of rows that exist"),
    (LosesRows, "cache_policy", "within its budget it equals full attention"),
    (Remembers, "cache_policy", "sessions do not disturb one another"),
    (Scribbles, "cache_policy", "a session decodes on after eviction, within the budget"),
    (Shuffles, "cache_policy", "the same rows are judged alike"),
    (AcceptsTheLikeliest, "decoder", "sampled text is the default decoder's"),
    (OffByOne, "decoder", "sampled text is the default decoder's"),
    (TrustsItself, "decoder", "greedy text is the default decoder's"),
    (LeavesRows, "decoder", "stopped, it leaves no uncommitted rows behind"),
    (ForgetsHistory, "decoder", "yields non-empty lists of ids and keeps the history"),
    (Empties, "decoder", "yields non-empty lists of ids and keeps the history"),
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
    (WrongLogits, "backends", "logits equal the torch backend's"),
    (FallsBack, "backends", "an absent device is refused"),
    (Moody, "rewards", "a score is a finite number, the same each time"),
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
            return part(self.rows, self.first)

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


# ---------------------------------------------------------------- formats


def formats_with(made):
    @frozen(eq=False, kw_only=True)
    class Formats(ReferenceFormat):
        @hookimpl
        def andes_formats(self):
            return [made]

    return {r.id: r for r in run_checks(Formats(), kinds=["formats"])}


class ForgetsTheLastRow(Integer):
    def decode(self, packed):
        values, scales = super().decode(packed)
        values = values.copy()
        values[:, -1] = 0
        return values, scales


class CountsNoScales(Integer):
    def type_bpw(self, rows, cols, *, memory=False):
        return float(self.grid.bits)


NIBBLE = Grid(bits=4, low=-8, high=7)


@pytest.mark.parametrize(
    ("made", "check"),
    [
        (Integer(name="w8", group=64, grid=NIBBLE), "every format has a name of its own"),
        (
            ForgetsTheLastRow(name="x", group=64, grid=NIBBLE),
            "what is packed is dequantised without loss, whatever the shape",
        ),
        (CountsNoScales(name="x", group=64, grid=NIBBLE), "the bits per weight that it states are those of its bytes"),
    ],
    ids=["taken name", "lossy", "wrong bits"],
)
def test_a_planted_bug_in_a_format_fails_the_check_that_names_it(made, check):
    results = formats_with(made)
    assert [name for name, r in results.items() if r.status == "failed"] == [f"formats: {check}"]


def test_the_reference_format_passes():
    assert {r.status for r in run_checks(ReferenceFormat, kinds=["formats"])} == {"passed"}
