"""Cache policies that score rows and that replay them, intact and with planted bugs: the kit names each of them."""

from __future__ import annotations

import pytest
import torch
from attrs import define, field, frozen

from andes_sdk import hookimpl
from andes_sdk.testing import run_checks
from andes_sdk.testing.reference import ReferencePolicy

ROWS, HEADS, LAYERS = 24, 2, 2
"""Rows kept per head; KV heads and layers of the reference model."""


@frozen
class Scoring:
    """Scores rows by what enters layer 1, keeps those that are most like what it kept before, and the newest."""

    name: str = "scoring"
    window: int = 0
    taps: tuple[int, ...] = (1,)
    replays: bool = False

    def budget(self, seen):
        return min(seen, ROWS) * HEADS * LAYERS

    def open(self, state=None):
        return ScoreKeeper(None if state is None else state["mean"].clone())


@define(eq=False)
class ScoreKeeper:
    """Remembers the mean score of what it kept."""

    mean: torch.Tensor = field(default=None, converter=lambda mean: torch.zeros(()) if mean is None else mean)

    def state(self):
        return {"mean": self.mean}

    def score(self, layer, hidden):
        return torch.stack([hidden.norm(dim=1), hidden.abs().amax(dim=1)])

    def due(self, seen, held, reading):
        return held > ROWS * HEADS * LAYERS

    def keep(self, cache):
        kept = [self.best(s) for s in cache.layers[1].scores]
        kept_scores = [s[k].mean() for s, k in zip(cache.layers[1].scores, kept, strict=True)]
        self.mean = (self.mean + torch.stack(kept_scores).mean()) / 2
        return [[torch.arange(len(k) - ROWS, len(k)) for k in cache.layers[0].keys], kept]

    def best(self, scores):
        weighed = -(scores - self.mean).abs()
        weighed[-1] = torch.inf
        return weighed.topk(min(ROWS, len(weighed))).indices.sort().values


@frozen
class Replaying:
    """Keeps the rows whose keys are most like those of the first inputs, read once more behind all others."""

    name: str = "replaying"
    window: int = 0
    taps: tuple[int, ...] = ()
    replays: bool = True

    def budget(self, seen):
        return min(seen, ROWS) * HEADS * LAYERS

    def open(self, state=None):
        return ReplayKeeper(0 if state is None else int(state["asked"]))


@define(eq=False)
class ReplayKeeper:
    """Counts how often it was asked: the question grows by a row each time, up to eight."""

    asked: int = 0

    def state(self):
        return {"asked": torch.tensor(self.asked)}

    def score(self, layer, hidden):
        return None

    def due(self, seen, held, reading):
        return held > ROWS * HEADS * LAYERS

    def keep(self, cache):
        self.asked += 1
        found = {}
        cache.replay(self.question(cache), lambda layer, queries, keys: found.update({layer: keys.clone()}))
        return [[self.best(k, asked) for k, asked in zip(x.keys, found[x.index], strict=True)] for x in cache.layers]

    def question(self, cache):
        return cache.embeds[: min(8, self.asked)]

    def best(self, keys, asked):
        likeness = (keys @ asked.T).sum(dim=1)
        likeness[-1] = torch.inf
        return likeness.topk(min(ROWS, len(keys))).indices.sort().values


INTACT = [Scoring, Replaying]

# ---------------------------------------------------------------- planted


def keeping(policy, keeper):
    """The policy with keepers of this class."""

    class Special(policy):
        def open(self, state=None):
            made = super().open(state)
            return keeper(*([made.mean] if policy is Scoring else [made.asked]))

    Special.__name__ = keeper.__name__
    return Special


class OneForAllHeads(ScoreKeeper):
    """Gives one score for each row, whatever the head."""

    def score(self, layer, hidden):
        return super().score(layer, hidden)[0]


class RowsFirst(ScoreKeeper):
    """Gives heads along the second axis."""

    def score(self, layer, hidden):
        return super().score(layer, hidden).T


class Infinite(ScoreKeeper):
    """Takes the logarithm of what may be negative."""

    def score(self, layer, hidden):
        return hidden[:, :HEADS].log().T


@define(eq=False)
class CountsAll(ScoreKeeper):
    """Counts the rows that it scores, and tells nobody."""

    count: int = 0

    def score(self, layer, hidden):
        self.count += len(hidden)
        return super().score(layer, hidden) * (1 + 0.5 * (self.count % 7) * torch.rand(1, generator=seeded(self.count)))


def seeded(number):
    return torch.Generator().manual_seed(number)


class ForgetsMean(Scoring):
    """Starts without a mean where a session goes on."""

    def open(self, state=None):
        return ScoreKeeper()


class ForgetsCount(Replaying):
    """Starts to count anew where a session goes on."""

    def open(self, state=None):
        return ReplayKeeper()


class KeepsToItself(ReplayKeeper):
    """Gives nothing of its memory away."""

    def state(self):
        return {"asked": torch.tensor(0)}


class SharesMean(Scoring):
    """All its keepers are one."""

    def open(self, state=None):
        return self.__dict__.setdefault("one", ScoreKeeper())


class ForksAreOne(Replaying):
    """A fork's keeper is that of the session it came from."""

    made = []  # noqa: RUF012

    def open(self, state=None):
        if state is None or not self.made:
            self.made.append(ReplayKeeper())
        return self.made[-1]


class HalfTheBudget(ScoreKeeper):
    """Keeps a few rows of those that it may."""

    def best(self, scores):
        return super().best(scores)[-6:]

    def keep(self, cache):
        first, second = super().keep(cache)
        return [[index[-6:] for index in first], second]


class GrowsBeyond(ScoreKeeper):
    """Keeps a row more than it may."""

    def keep(self, cache):
        first, second = super().keep(cache)
        return [[torch.cat([index[:1] - 1, index]) for index in first], second]


class SpoilsScores(ScoreKeeper):
    """Ranks in place."""

    def best(self, scores):
        kept = super().best(scores)
        scores.sub_(scores.mean())
        return kept


class IgnoresReplays(ReplayKeeper):
    """Has all inputs stored, and compares with keys that are there."""

    def keep(self, cache):
        return [[self.best(k, k[:1]) for k in x.keys] for x in cache.layers]


class ReplaysUnasked(Scoring):
    """Replays what it has not asked for."""

    def open(self, state=None):
        return Unasked(None if state is None else state["mean"].clone())


class Unasked(ScoreKeeper):
    def keep(self, cache):
        cache.replay(torch.zeros(1, 32), lambda layer, queries, keys: None)
        return super().keep(cache)


class SpoilsInputs(ReplayKeeper):
    """Normalises the inputs that it replays, in place."""

    def question(self, cache):
        some = super().question(cache)
        return some.div_(some.norm(dim=1, keepdim=True))


class TooMany(ReplayKeeper):
    """Replays nothing where it has nothing to ask."""

    def question(self, cache):
        return super().question(cache)[:0]


BUDGET = "its budget is a number of rows, or none, and it keeps to it"
SCORES = "scores are finite, one for each KV head and row, and those of dropped rows leave no trace"
REPLAYS = "replays if it says so, and only then"
LIVES = "a session decodes on after eviction, within the budget"
RESTORED = "a fork and a restored session keep the same rows as the original"
TOGETHER = "conversations decoded together get the answers and keep the rows of each alone"
PLANTED = [
    (keeping(Scoring, OneForAllHeads), SCORES),
    (keeping(Scoring, RowsFirst), SCORES),
    (keeping(Scoring, Infinite), SCORES),
    (keeping(Scoring, CountsAll), RESTORED),
    (ForgetsMean, RESTORED),
    (ForgetsCount, RESTORED),
    (keeping(Replaying, KeepsToItself), RESTORED),
    (SharesMean, TOGETHER),
    (ForksAreOne, TOGETHER),
    (keeping(Scoring, HalfTheBudget), BUDGET),
    (keeping(Scoring, GrowsBeyond), BUDGET),
    (keeping(Scoring, SpoilsScores), LIVES),
    (keeping(Replaying, IgnoresReplays), REPLAYS),
    (ReplaysUnasked, REPLAYS),
    (keeping(Replaying, SpoilsInputs), LIVES),
    (keeping(Replaying, TooMany), REPLAYS),
]


def results_of(policy):
    @frozen(eq=False, kw_only=True)
    class Policy(ReferencePolicy):
        @hookimpl
        def andes_cache_policy(self, model):
            return policy()

    return run_checks(Policy, kinds=["cache_policy"])


@pytest.mark.parametrize("policy", INTACT, ids=lambda p: p.__name__)
def test_a_policy_that_does_all_of_it_right_passes(policy):
    results = {r.id.removeprefix("cache_policy: "): r for r in results_of(policy)}
    assert {name: r.reason for name, r in results.items() if r.status == "failed"} == {}
    skipped = {name for name, r in results.items() if r.status != "passed"}
    assert skipped == (set() if policy().taps else {SCORES})


@pytest.mark.parametrize(("policy", "check"), PLANTED, ids=[p[0].__name__ for p in PLANTED])
def test_a_planted_bug_fails_the_check_that_names_it(policy, check):
    results = results_of(policy)
    failed = {r.id.removeprefix("cache_policy: "): r.reason for r in results if r.status == "failed"}
    assert check in failed, failed
    assert len(failed) < len(results), f"everything fails, the bug is not singled out: {failed}"
