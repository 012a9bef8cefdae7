"""Same seed, same text, with and without speculation.

On numba a row has the same bits however many are computed with it, so texts and log-probabilities are equal to the bit.
On torch a matrix product of several rows may add in another order than one of a single row: logits differ by rounding.
So tokens are equal unless two candidates stand closer together than that, and log-probabilities are equal to 1e-4.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_speculative.testing import guessing as with_head
from andes_speculative.testing import lively
from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.errors import SessionError
from andes_sdk.runtime.engine import Conversation, Engine
from andes_sdk.runtime.generation import Answer
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.testing.material import conversation, plain_inputs
from andes_sdk.types import Adapter, Inputs, LowRank

TREES = {"speculative": {"adapt": False, "rows": 9, "width": 3}}
"""Everything that is guessed is verified, trees of several ways among it."""
CHOSEN = {"speculative": {"row_cost": 0.02}}
OWN = ["trees", "chosen", "measured", "eagle3", "block"]


@pytest.fixture(scope="module", params=["torch", "numba"])
def pair(request: pytest.FixtureRequest) -> tuple[Pipeline, Pipeline]:
    """Without and with."""
    return lively(backend=request.param), lively(TREES, backend=request.param)


def random_options(rng: random.Random) -> GenerationOptions:
    return GenerationOptions(
        max_tokens=rng.randint(1, 40), temperature=rng.choice([0.0, 0.0, 0.3, 1.0, 1.7]), top_k=rng.choice([0, 2, 5]),
        top_p=rng.choice([1.0, 0.9, 0.5]), min_p=rng.choice([0.0, 0.1]), seed=rng.randrange(1 << 20),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]), presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        logprobs=rng.choice([None, 2]), constraint=rng.choice([None, None, Few(rng.randrange(100, 400))]),
    )  # fmt: skip


class Few:
    """Eight tokens, and all of them behind each third one: guesses are often right, and often forbidden."""

    def __init__(self, first: int) -> None:
        self.first = first

    def allowed(self, answer: Sequence[int]) -> torch.Tensor | None:
        if len(answer) % 3 == 2:
            return None
        allowed = torch.zeros(512, dtype=torch.bool)
        allowed[self.first : self.first + 8] = True
        return allowed


def random_prompt(pipe: Pipeline, rng: random.Random) -> Inputs:
    """Text that repeats itself here and there."""
    words = [rng.randrange(20, 200) for _ in range(rng.randint(1, 12))]
    ids = [t for _ in range(rng.randint(1, 4)) for t in words[rng.randrange(len(words)) :]]
    marks = {pipe.tokenizer.placeholder("image"), pipe.tokenizer.eos, pipe.tokenizer.pad}
    return Inputs(ids=torch.tensor([21 if t in marks else t for t in ids]))


Job = tuple[Inputs, GenerationOptions]


def decode(engine: Engine, jobs: Sequence[Job], *, together: bool = False) -> list[Conversation]:
    made = []
    for inputs, options in jobs:
        made.append(engine.join(inputs, options))
        if together:
            engine.step()
        else:
            engine.run()
    engine.run()
    for one in made:
        assert one.error is None, one.error
        one.session.close()
    return made


def check_same(plain: Pipeline, guessing: Pipeline, jobs: Sequence[Job], *, together: bool = False) -> None:
    exact = plain.plan.backend == "numba"
    wanted = decode(evolve(plain.engine(), ends=(3,)), jobs)
    got = decode(evolve(guessing.engine(), ends=(3,)), jobs, together=together)
    for (_, options), one, other in zip(jobs, wanted, got, strict=True):
        assert list(other.tokens) == list(one.tokens), options
        assert other.finish == one.finish
        for a, b in zip(one.sampler.logprobs, other.sampler.logprobs, strict=True):
            if exact:
                assert a == b
            else:
                assert abs(a.logprob - b.logprob) < 1e-4
                assert [t for t, _ in a.top] == [t for t, _ in b.top]


@pytest.mark.parametrize("together", [False, True])
def test_random_prompts_with_random_options_have_the_same_text(pair: tuple[Pipeline, Pipeline], together: bool) -> None:
    plain, guessing = pair
    rng = random.Random(7 + together)
    check_same(
        plain, guessing, [(random_prompt(plain, rng), random_options(rng)) for _ in range(16)], together=together
    )


@pytest.mark.slow
@pytest.mark.parametrize("own", [TREES, CHOSEN, {"speculative": {}}, "eagle3", "block"], ids=OWN)
def test_five_hundred_prompts_have_the_same_text(pair: tuple[Pipeline, Pipeline], own: Any, tmp_path: Path) -> None:
    plain, _ = pair
    if isinstance(own, str):
        own = with_head(own, plain.model, tmp_path, depth=4, width=2)
    guessing = lively(own, backend=plain.plan.backend)
    rng = random.Random(11)
    for start in range(0, 504, 12):
        jobs = [(random_prompt(plain, rng), random_options(rng)) for _ in range(12)]
        check_same(plain, guessing, jobs, together=start % 24 == 0)


def test_guesses_come_true_and_save_passes(pair: tuple[Pipeline, Pipeline]) -> None:
    _, guessing = pair
    engine = evolve(guessing.engine(), ends=())
    one = engine.join(plain_inputs(guessing, 20), GenerationOptions(max_tokens=60, constraint=Few(100), min_p=1.0))
    passes = 0
    while engine.active:
        engine.step()
        passes += 1
    assert len(one.tokens) == 60
    assert passes < 45
    notes = one.session.stats.notes
    assert notes["verifications"] == passes - 2  # the prompt's pass, and the last one, which nobody reads
    assert 60 - notes["guesses right"] - passes in range(10)
    assert one.session.stats.accepted == 59
    one.session.close()


@pytest.mark.parametrize("messages", [conversation(0), [{"role": "user", "content": "no picture"}]])
@pytest.mark.parametrize("think", [False, True])
def test_pictures_thinking_stop_strings_and_streams(
    pair: tuple[Pipeline, Pipeline], messages: Any, think: bool
) -> None:
    plain, guessing = pair
    for options in (
        GenerationOptions(max_tokens=24, think=think),
        GenerationOptions(max_tokens=24, think=think, temperature=1.0, top_k=3, seed=5, repetition_penalty=1.1),
    ):
        wanted = plain.generate(messages, options)
        assert same_answer(guessing.generate(messages, options), wanted)
        stop = wanted.text[len(wanted.text) // 2 :][:2]
        if stop.strip():
            stopped = evolve(options, stop=stop)
            assert same_answer(guessing.generate(messages, stopped), plain.generate(messages, stopped))
        stream, pieces = guessing.stream(messages, options), []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                assert same_answer(end.value, wanted)
                break
        assert "".join(pieces) == wanted.text


def same_answer(one: Answer, other: Answer) -> bool:
    return (one.text, one.tokens, one.finish) == (other.text, other.tokens, other.finish)


def test_cancelling_in_the_middle_leaves_the_others_as_they_are(pair: tuple[Pipeline, Pipeline]) -> None:
    plain, guessing = pair
    options = GenerationOptions(max_tokens=30)
    jobs = [(plain_inputs(plain, 20, seed), options) for seed in (3, 4)]
    wanted = decode(evolve(plain.engine(), ends=()), jobs)
    engine = evolve(guessing.engine(), ends=())
    first, second = (engine.join(*job) for job in jobs)
    while len(second.tokens) < 8:
        engine.step()
    engine.leave(first)
    engine.run()
    assert list(second.tokens) == list(wanted[1].tokens)
    assert list(first.tokens) == list(wanted[0].tokens)[: len(first.tokens)]
    assert not first.session.is_open  # type: ignore[attr-defined]
    second.session.close()


class StopsInside:
    """A watch that ends the answer at a token, wherever in a verified tree that is."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, logits: torch.Tensor, token: int) -> bool:
        self.count += 1
        return self.count == self.at


@pytest.mark.parametrize("at", range(30, 40))
def test_an_answer_that_ends_inside_a_verified_tree_has_no_token_too_many(
    pair: tuple[Pipeline, Pipeline], at: int
) -> None:
    plain, guessing = pair
    inputs, options = plain_inputs(plain, 20), GenerationOptions(max_tokens=60)
    ended = []
    for pipe in (plain, guessing):
        engine = evolve(pipe.engine(), ends=())
        one = engine.join(inputs, options, watch=StopsInside(at))
        engine.run()
        ended.append((list(one.tokens), one.finish, one.session.length))
        again = one.session.extend([5, 6])[0]  # the session lives on, with the committed rows alone
        assert again.shape[0] == 2
        one.session.rollback()
        one.session.close()
    assert ended[0][:2] == ended[1][:2]
    assert len(ended[0][0]) == at


def adapter(pipe: Pipeline) -> Adapter:
    generator = torch.Generator().manual_seed(3)
    rows = {n: m for n, m in pipe.model.language_model.named_modules() if n.endswith(("q_proj", "down_proj"))}
    layers = {
        name: LowRank(
            a=torch.randn(4, m.in_features, generator=generator) / 8,  # type: ignore[operator]
            b=torch.randn(m.out_features, 4, generator=generator) / 8,  # type: ignore[operator]
            scale=2.0,
        )
        for name, m in rows.items()
    }
    return Adapter(name="mine", layers=layers)


def test_an_adapter_is_active_in_verification(pair: tuple[Pipeline, Pipeline]) -> None:
    plain, guessing = pair
    for pipe in pair:
        pipe.compiled.add_adapter(adapter(pipe))  # type: ignore[attr-defined]
    try:
        options = [
            GenerationOptions(max_tokens=40, adapter=name, temperature=t, top_k=2, seed=1)
            for name in (None, "mine")
            for t in (0.0, 0.8)
        ]
        jobs = [(plain_inputs(plain, 16), o) for o in options]
        check_same(plain, guessing, jobs)
        check_same(plain, guessing, jobs, together=True)
        texts = [list(c.tokens) for c in decode(plain.engine(), jobs)]
        assert texts[0] != texts[2]  # it does change the text
    finally:
        for pipe in pair:
            pipe.compiled.remove_adapter("mine")  # type: ignore[attr-defined]


def test_an_unknown_adapter_ends_that_conversation_alone(pair: tuple[Pipeline, Pipeline]) -> None:
    _, guessing = pair
    engine = evolve(guessing.engine(), ends=())
    good = engine.join(plain_inputs(guessing, 9), GenerationOptions(max_tokens=20))
    with pytest.raises(SessionError, match="no adapter"):
        engine.join(plain_inputs(guessing, 9), GenerationOptions(adapter="nobody"))
    engine.run()
    assert len(good.tokens) == 20
    good.session.close()


def rows_of(pipe: Pipeline, tokens: Sequence[int], parents: Sequence[int] | None) -> torch.Tensor:
    session = pipe.session()
    session.prefill(plain_inputs(pipe, 33))
    logits, _ = session.extend(tokens, parents)
    session.close()
    return logits


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 12, 17])
def test_rows_of_a_chain_are_those_of_single_steps(pair: tuple[Pipeline, Pipeline], count: int) -> None:
    """Bit for bit on numba; on torch to 1e-4 of logits of size one."""
    plain, _ = pair
    tokens = [30 + 7 * n % 100 for n in range(count)]
    session = plain.session()
    session.prefill(plain_inputs(plain, 33))
    single = torch.cat([session.extend([token])[0] for token in tokens])
    session.close()
    together = rows_of(plain, tokens, None)
    if plain.plan.backend == "numba":
        assert torch.equal(single, together)
    else:
        assert float((single - together).abs().max()) < 1e-4 * max(1.0, float(single.abs().max()))


def test_rows_of_a_tree_are_those_of_its_chains(pair: tuple[Pipeline, Pipeline]) -> None:
    plain, _ = pair
    tokens, parents = [30, 31, 32, 33, 34, 35], [-1, 0, 0, 1, 2, 2]
    tree = rows_of(plain, tokens, parents)
    for path in ([0, 1, 3], [0, 2, 4], [0, 2, 5]):
        chain = rows_of(plain, [tokens[n] for n in path], None)
        if plain.plan.backend == "numba":
            assert torch.equal(tree[path], chain)
        else:
            assert float((tree[path] - chain).abs().max()) < 1e-4 * max(1.0, float(chain.abs().max()))
