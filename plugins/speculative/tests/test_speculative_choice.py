"""What is proposed: the best by the cost of a pass, found by trying all; and what the cost is."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from andes_speculative import cost as costs
from andes_speculative.acceptance import HitRate
from andes_speculative.choice import MARGIN, MOST_ROWS, choose, deepest, least
from andes_speculative.cost import ASSUMED, ENOUGH, Cost, Drag, cost_of, linear, measure
from andes_speculative.decoder import FIRST, MOST, RETRY, SHARE, Draft, Purse, SpeculativeDecoder, depth_of
from andes_speculative.drafter import Guess
from andes_speculative.suffix import SuffixDrafter, Words
from andes_speculative.testing import MODEL
from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from andes_sdk import Pipeline
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.testing.material import plain_inputs


def some_guesses(rng: random.Random, count: int) -> list[Guess]:
    """A random tree whose chances fall along paths and add up to at most that of the parent."""
    made: list[Guess] = []
    left = {-1: 1.0}
    for _ in range(count):
        parent = rng.choice(list(left))
        chance = left[parent] * rng.uniform(0.1, 0.9)
        left[parent] -= chance
        made.append(Guess(len(made), parent, chance))
        left[len(made) - 1] = chance
    return made


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_no_other_set_of_guesses_promises_more_tokens_a_second(seed: int) -> None:
    rng = random.Random(seed)
    guesses = [some_guesses(rng, rng.randint(0, 4)) for _ in range(2)]
    cost = Cost((1, 2, 4, 8), (1.0, *sorted(rng.uniform(1, 4) for _ in range(3))))

    def speed(chosen: list[tuple[int, int]]) -> float:
        return (2 + sum(guesses[w][i].chance for w, i in chosen)) / cost.of(2 + len(chosen))

    every = [(who, index) for who, some in enumerate(guesses) for index in range(len(some))]
    best = max(speed(list(chosen)) for n in range(len(every) + 1) for chosen in itertools.combinations(every, n))
    made = choose(guesses, cost)
    got = []
    for who, one in enumerate(made):
        parents = one.parents or tuple(range(-1, len(one.tokens) - 1))
        assert all(-1 <= p < n for n, p in enumerate(parents))
        got += [(who, index) for index in matched(guesses[who], one.tokens, parents)]
    if best < MARGIN * speed([]):
        assert got == []
    else:
        assert speed(got) == pytest.approx(best)


def matched(guesses: list[Guess], tokens: tuple[int, ...], parents: tuple[int, ...]) -> list[int]:
    """Which guesses a proposal holds: proposals keep their order."""
    found: list[int] = []
    start = 0
    for token, parent in zip(tokens, parents, strict=True):
        wanted = -1 if parent < 0 else found[parent]
        index = next(i for i in range(start, len(guesses)) if guesses[i].token == token and guesses[i].parent == wanted)
        found.append(index)
        start = index + 1
    return found


def test_where_a_row_costs_as_much_as_a_pass_nothing_is_proposed() -> None:
    guesses = [[Guess(1, -1, 0.9), Guess(2, 0, 0.8)]]
    assert choose(guesses, linear(1.0))[0].tokens == ()
    assert choose(guesses, linear(0.1))[0].tokens == (1, 2)
    # 1.9 / 1.5 beats 1, and 2.7 / 2 beats that
    assert choose(guesses, linear(0.5))[0].tokens == (1, 2)
    # a second row that doubles the pass does not pay: 1.9 / 1.2 = 1.58, 2.7 / 2.4 = 1.13
    assert choose(guesses, Cost((1, 2, 3), (1.0, 1.2, 2.4)))[0].tokens == (1,)


def test_the_likelier_way_on_has_its_rows_before_the_other_conversation_has() -> None:
    sure = [Guess(1, -1, 0.95), Guess(2, 0, 0.9)]
    unsure = [Guess(3, -1, 0.3), Guess(4, -1, 0.2)]
    one, other = choose([sure, unsure], linear(0.4))
    assert one.tokens == (1, 2)
    assert other.tokens == ()
    both = choose([sure, unsure], linear(0.01))[1]
    assert both.tokens == (3, 4)
    assert both.parents == (-1, -1)  # two ways on from one place: a tree


def test_a_conversation_whose_guesses_were_wrong_is_believed_less() -> None:
    guesses = [[Guess(1, -1, 0.4)], [Guess(2, -1, 0.4)]]
    assert [one.tokens for one in choose(guesses, linear(0.1), [1.0, 0.2])] == [(1,), ()]


def test_guesses_that_are_always_wrong_cost_a_conversation_a_fiftieth_of_its_time() -> None:
    # the text says a b a c a d …: what came after `a` before never comes again, and a row costs a fifth of a pass
    decoder = SpeculativeDecoder(SuffixDrafter(), fixed=linear(0.2))
    draft, spent = decoder.open(), 0.0
    draft.memory.rate = Sure()
    draft.read([1, 2], None)  # type: ignore[arg-type]
    for n in range(3, 200):
        made = decoder.propose([draft], [1])[0]
        spent += 0.2 * len(made.tokens)
        draft.read([1], None)  # type: ignore[arg-type]
        decoder.propose([draft], [n])
        draft.read([n], None)  # type: ignore[arg-type]
    assert 0.2 <= spent < 0.02 * 2 * 197


def told_wrongly(decoder: SpeculativeDecoder, tokens: int) -> tuple[float, int]:
    """A short answer in which every guess is wrong -> its price in tokens, and passes."""
    draft, spent = decoder.open(), 0.0
    draft.memory.rate = Sure()
    draft.read([1, 2], None)  # type: ignore[arg-type]
    for n in range(3, 3 + tokens):
        for token in (1, n):
            made = decoder.propose([draft], [token])[0]
            spent += decoder.cost.of(1 + len(made.tokens)) - 1.0
            draft.read([token], None)  # type: ignore[arg-type]
    return spent, 2 * tokens


@pytest.mark.parametrize("cost", [linear(0.2), Cost((1, 2, 4, 8), (1.0, 1.3, 1.4, 2.0))], ids=["rows", "steps"])
def test_many_short_answers_lose_a_fiftieth_together_and_what_the_first_guesses_cost(cost: Cost) -> None:
    decoder, spent, passes = SpeculativeDecoder(SuffixDrafter(), fixed=cost), 0.0, 0
    for _ in range(100):
        lost, made = told_wrongly(decoder, 8)
        spent, passes = spent + lost, passes + made
        assert spent <= FIRST + SHARE * passes + 1e-9
    assert spent > 0.9 * SHARE * passes  # it goes on trying
    alone = sum(told_wrongly(SpeculativeDecoder(SuffixDrafter(), fixed=cost), 8)[0] for _ in range(100))
    assert alone > 1.5 * spent  # without what the others learnt each would lose more


def test_what_was_earned_may_be_lost_again_and_never_much_of_it() -> None:
    decoder = SpeculativeDecoder(SuffixDrafter(), fixed=linear(0.2))
    draft = decoder.open()
    draft.read([1, 2, 3, 4] * 8, None)  # type: ignore[arg-type]
    at = 0
    for _ in range(40):
        made = decoder.propose([draft], [1 + at % 4])[0]
        path = [1 + (at + n) % 4 for n in range(1 + depth_of(made))]
        draft.read(path, None)  # type: ignore[arg-type]
        at += len(path)
    assert at > 200
    assert decoder.purse.left > MOST - 2.0
    spent, passes = 0.0, 0
    for _ in range(20):
        lost, made_passes = told_wrongly(decoder, 8)
        spent, passes = spent + lost, passes + made_passes
        assert spent <= MOST + SHARE * passes


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_below_the_least_chance_nothing_pays_and_at_it_something_does(seed: int) -> None:
    rng = random.Random(seed)
    cost = Cost((1, 2, 4, 8), (1.0, *sorted(rng.uniform(1, 4) for _ in range(3))))
    base = rng.randint(1, 3)
    bar = least(cost, base)
    for chance, pays in ((bar * 0.999, False), (bar * 1.001, True)):
        if chance <= 1.0:  # guesses that are as likely as the first, as many as one likes
            guesses = [[Guess(n, n - 1, chance) for n in range(MOST_ROWS)], *([] for _ in range(base - 1))]
            assert any(one.tokens for one in choose(guesses, cost)) is pays


def test_what_cannot_pay_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    inner = Words.ways
    monkeypatch.setattr(Words, "ways", lambda self, *given: (looked.append(given), inner(self, *given))[1])
    counts = []
    for price in (0.05, 0.9):
        decoder = SpeculativeDecoder(SuffixDrafter(), fixed=linear(price))
        draft = decoder.open()
        draft.memory.text.extend(1)
        for token in (2, 1, 3, 1, 4):
            draft.memory.text.extend(token)
        looked.clear()
        made = decoder.propose([draft], [1])[0]
        counts.append((len(looked), len(made.tokens)))
        assert draft.idle == (not made.tokens)
    assert counts[0][0] > 3
    assert counts[0][1] > 0
    assert counts[1] == (1, 0)


def test_a_drafter_that_costs_something_begins_with_what_others_saw_and_pays_for_being_asked_again() -> None:
    decoder = SpeculativeDecoder(Slow(), depth=4, fixed=Cost((1, 2, 4), (1.0, 1.1, 1.3), 0.01), step=0.1)
    first = decoder.open()
    decoder._time([first], 5.0, 1, 100)  # reading the prompt took long: its first pass counts as any
    assert decoder.purse.left == pytest.approx(FIRST - 0.1)
    assert (decoder.step, decoder.again) == (0.1, 5.0)
    decoder._time([first], 0.002, 1, 1)
    assert decoder.step == pytest.approx(0.11)
    for _ in range(400):  # always wrong
        decoder.propose([first], [5])
        first.read([5], None)  # type: ignore[arg-type]
    assert first.rate < 0.2
    second = decoder.open()
    assert second.rate == decoder.purse.rate < 0.5
    second.rate, second.waited = 0.0, RETRY
    decoder.purse.left, decoder.again, decoder.step = 1.0, 0.95, 0.1
    assert decoder._depth([second]) == 0
    decoder.again = 0.85
    assert decoder._depth([second]) == 1
    assert second.waited == -1
    decoder._time([second], 0.03, 1, 10, paid=False)  # to see whether it would pay: all of it counts
    assert decoder.purse.left == pytest.approx(1.0 - 3.0)


def test_a_drafter_that_costs_something_goes_no_deeper_than_the_purse_pays() -> None:
    cost = Cost((1, 2, 4, 8), (1.0, 1.02, 1.05, 1.1), 0.01)
    decoder = SpeculativeDecoder(Slow(), depth=6, fixed=cost, step=0.2)
    draft = decoder.open()
    for left, depth in ((8.0, 6), (0.7, 3), (0.21, 1), (0.19, 0)):
        decoder.purse.left, draft.rate = left, 0.9
        assert decoder._depth([draft]) == depth


def test_no_conversation_is_given_no_guesses() -> None:
    assert SpeculativeDecoder(SuffixDrafter(), fixed=linear(0.2)).propose([], []) == []


def test_another_drafter_that_costs_nothing_is_asked_by_the_protocol() -> None:
    decoder = SpeculativeDecoder(Free(), fixed=Cost((1, 2), (1.0, 1.02), 0.01))
    assert decoder.propose([decoder.open()], [5])[0].tokens == (7,)


class Slow:
    """A drafter that costs something, and always says 7."""

    name, taps, free, stride = "slow", (), False, 1

    def open(self) -> Any:
        return Deaf()

    def guess(self, memories: Any, last: Any, depth: int) -> list[list[Guess]]:
        return [[Guess(7, -1, 0.9)] for _ in memories]


class Deaf:
    """A memory that remembers nothing."""

    def read(self, tokens: Any, rows: Any) -> None:
        return

    def fork(self) -> Any:
        return self


class Free(Slow):
    """The same, as the protocol says, and it costs nothing."""

    name, free = "free", True


class Sure(HitRate):
    """Does not learn: every guess is said to be right at four of ten times."""

    def chance(self, kind: int, assumed: float) -> float:
        return 0.4


def test_passes_that_take_longer_in_a_conversation_raise_the_price_and_interruptions_do_not() -> None:
    drag, cost = Drag(), Cost((1, 2, 4), (1.0, 1.2, 1.5), 1.0)
    for _ in range(ENOUGH):
        drag.note(1, 1.0, cost)
    for _ in range(60):
        drag.note(2, 1.8, cost)
        drag.note(2, 100.0, cost)
    assert drag.times == pytest.approx(1.5, abs=0.01)
    assert drag.on(cost).of(2) == pytest.approx(1.8, abs=0.02)
    assert drag.on(cost).of(1) == 1.0
    for _ in range(60):
        drag.note(2, 1.0, cost)
    assert drag.times == pytest.approx(1.0, abs=0.01)  # never cheaper than what was measured


def test_a_price_that_was_raised_comes_down_and_guesses_are_made_again() -> None:
    decoder = SpeculativeDecoder(SuffixDrafter(), depth=1, measured=Cost((1, 2, 4), (1.0, 1.1, 1.3), 1.0))
    decoder.drag.times = 3.0  # something else ran beside the first conversation
    draft, made = decoder.open(), []
    draft.read([1, 2, 3, 4] * 4, None)  # type: ignore[arg-type]
    for n in range(400):
        made.append(len(decoder.propose([draft], [1 + n % 4])[0].tokens))
        draft.read([1 + n % 4], None)  # type: ignore[arg-type]
        if made[-1]:
            break
    assert made[:50] == [0] * 50
    assert made[-1] > 0
    assert 1.0 < decoder.drag.times < 2.5


def test_a_pass_that_reads_the_prompt_of_another_says_nothing_of_the_price(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    monkeypatch.setattr(Drag, "note", lambda self, rows, *_: noted.append(rows))
    decoder = SpeculativeDecoder(SuffixDrafter(), measured=ASSUMED)
    draft, other = decoder.open(), decoder.open()
    draft.read([1, 2, 3], None)  # type: ignore[arg-type]
    for step in range(4):
        decoder.propose([draft], [5 + step])
        if step == 1:
            other.read([1, 2], None)  # type: ignore[arg-type]
        draft.read([5 + step], None)  # type: ignore[arg-type]
    assert noted == [1, 1]  # three passes lie between four proposals; that of step 1 is not told


def test_depth_is_that_of_the_best_speed_by_hand() -> None:
    # rate 1/2, a row 0.1, a step 0.1: 1.5/1.2 = 1.25, 1.75/1.4 = 1.25, 1.875/1.6 = 1.17
    assert deepest(0.5, linear(0.1), 0.1, 8) in (1, 2)
    assert deepest(0.5, linear(0.1), 0.09, 8) == 2
    assert deepest(0.9, linear(0.05), 0.05, 8) == 8
    assert deepest(0.3, linear(0.2), 0.2, 8) == 0


def test_lines_between_what_was_measured_and_beyond() -> None:
    cost = Cost((1, 4, 8), (1.0, 1.6, 2.6))
    assert [cost.of(n) for n in (1, 2, 4, 6, 8, 12)] == pytest.approx([1.0, 1.2, 1.6, 2.1, 2.6, 3.6])
    assert str(cost) == "c(4) = 1.60, c(8) = 2.60"
    assert Cost((1,), (1.0,)).of(9) == 1.0


def test_the_cost_of_a_model_is_measured_once_for_all_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (Pipeline.from_plugins(MODEL, seed=n) for n in (1, 2))
    monkeypatch.setattr(costs, "_KNOWN", {})
    found = cost_of(one.compiled)
    assert found.rows[:5] == (1, 2, 4, 8, 16)  # larger ones only where a row takes less than 50 ms
    assert found.ratios[0] == 1.0
    assert list(found.ratios) == sorted(found.ratios)
    assert found.one > 0
    assert cost_of(other.compiled) is found
    assert [s for s in one.compiled.sessions if s.is_open] == []  # type: ignore[attr-defined]


def test_a_model_with_few_positions_is_measured_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline.from_plugins([*MODEL[:2], {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": 70}}}])
    assert measure(pipe.compiled).rows == (1, 2, 4)  # 64 rows of context, 6 more
    monkeypatch.setattr(costs, "CONTEXT", 70)
    assert measure(pipe.compiled) is ASSUMED


@define(eq=False)
class Timed:
    """A compiled model on a clock of its own: a pass takes what one says by rows, and now and then a second more."""

    inner: Any
    now: float = 0.0
    passes: int = 0

    def step(self, work: Any) -> Any:
        rows = sum(len(w.tokens) for w in work)
        self.passes += 1
        self.now += {1: 0.01, 2: 0.012, 4: 0.015, 8: 0.025}.get(rows, 0.04) + (self.passes % 11 == 5)
        return self.inner.step(work)

    def session(self, policy: Any) -> Any:
        return self.inner.session(policy)

    def clock(self) -> float:
        return self.now


def test_what_is_measured_is_what_a_pass_takes_when_nothing_disturbs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SECONDS", 1e9)
    timed = Timed(Pipeline.from_plugins(MODEL).compiled)
    found = measure(timed, timed.clock)
    assert found.rows == (1, 2, 4, 8, 16, 32, 64)
    assert found.ratios == pytest.approx((1.0, 1.2, 1.5, 2.5, 4.0, 4.0, 4.0))
    assert found.one == pytest.approx(0.01)


def test_guessing_stops_where_it_does_not_pay_starts_again_where_it_does_and_both_are_said() -> None:
    plain = Pipeline.from_plugins(MODEL, seed=1)
    dear = Pipeline.from_plugins([*MODEL, {"speculative": {"row_cost": 5.0}}], seed=1)
    inputs = plain_inputs(plain, 20)
    engine = evolve(dear.engine(), ends=())
    one = engine.join(inputs, GenerationOptions(max_tokens=60))
    assert {row.part: row.value for row in dear.explain().rows}["speculation"] == "not used yet"
    engine.run()
    notes = one.session.stats.notes
    assert notes["guesses"] == 0
    assert notes["passes without guesses, which would not pay"] > 10  # the answer repeats itself
    assert one.session.stats.proposed == one.session.stats.accepted == 59
    assert {row.part: row.value for row in dear.explain().rows}["speculation"].startswith("off")
    cheap = evolve(dear.decoder, fixed=linear(0.01))  # type: ignore[type-var]
    engine = evolve(dear.engine(), ends=(), decoder=cheap)
    two = engine.join(inputs, GenerationOptions(max_tokens=60))
    engine.run()
    assert list(two.tokens) == list(one.tokens)
    assert two.session.stats.notes["guesses right"] > 30
    assert cheap.facts()["speculation"].startswith("on")
    assert cheap.facts()["cost of verifying"] == "c(2) = 1.01; as given"


def test_measured_cost_and_state_stand_in_explain() -> None:
    pipe = Pipeline.from_plugins([*MODEL, "speculative"], seed=1)
    pipe.generate([{"role": "user", "content": "again and again and again"}], GenerationOptions(max_tokens=40))
    facts = {row.part: row.value for row in pipe.explain().rows}
    assert facts["drafter"] == "suffix"
    assert facts["cost of verifying"].startswith("c(2) = ")
    assert facts["cost of verifying"].endswith("; measured")
    assert facts["speculation"].startswith(("on", "off"))


def test_a_hit_rate_moves_from_what_was_assumed_to_what_is_seen_and_forgets() -> None:
    rate = HitRate()
    assert rate.chance(1, 0.4) == pytest.approx(0.4)
    for _ in range(200):
        rate.note(1, True)
    assert rate.chance(1, 0.4) > 0.94
    fork = rate.fork()
    for _ in range(100):
        fork.note(1, False)
    assert fork.chance(1, 0.4) < 0.1
    assert rate.chance(1, 0.4) > 0.94
    assert rate.chance(2, 0.4) == pytest.approx(0.4)


def test_copying_makes_long_drafts_and_prose_short_ones() -> None:
    rng = random.Random(3)
    passage = [rng.randrange(400) for _ in range(200)]
    drafter = SuffixDrafter()
    copying = drafter.open()
    copying.read([*passage, 1, *passage[:40]], None)  # type: ignore[arg-type]
    (long,) = drafter.guess([copying], [passage[40]], 64)
    decoder = SpeculativeDecoder(drafter, fixed=linear(0.2), purse=Purse(left=8.0))
    (chosen,) = decoder.propose([Draft(copying)], [passage[40]])
    assert list(chosen.tokens[:20]) == passage[41:61]
    assert depth_of(chosen) >= 20
    assert len(long) == 64
    prose = drafter.open()
    prose.read([rng.randrange(30) for _ in range(300)], None)  # type: ignore[arg-type]
    (chosen,) = decoder.propose([Draft(prose)], [5])
    assert depth_of(chosen) <= 2 if chosen.tokens else True
