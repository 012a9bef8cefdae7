"""A smaller model as the drafter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_speculative.decoder import SpeculativeDecoder
from andes_speculative.model import Ahead, ModelDrafter, refuse_other_vocabulary
from andes_speculative.testing import lively
from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.testing.material import conversation, plain_inputs


@pytest.fixture(scope="module")
def large() -> Pipeline:
    return lively()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights but for some noise: it is often right, and often wrong."""
    pipe = lively()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in pipe.model.language_model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator) / max(p.shape[-1], 1) ** 0.5)
    return pipe.save_pretrained(tmp_path_factory.mktemp("draft") / "small")


def guessing(large: Pipeline, small: Path, depth: int = 4) -> Any:
    drafter = ModelDrafter.of(Pipeline.from_pretrained(small), large.tokenizer, large.model.vision)
    return SpeculativeDecoder(drafter, depth, adapt=False)


def texts(pipe: Pipeline, jobs: Sequence[Any], decoder: Any = None) -> tuple[list[list[int]], list[Any]]:
    engine = evolve(pipe.engine(), ends=(), decoder=decoder or pipe.decoder)
    some = []
    for inputs, options in jobs:
        some.append(engine.join(inputs, options))
        engine.step()
    engine.run()
    for one in some:
        assert one.error is None, one.error
        one.session.close()
    return [list(one.tokens) for one in some], [one.draft for one in some]


def test_answers_of_several_conversations_are_those_without_it_and_many_guesses_are_right(
    large: Pipeline, small: Path
) -> None:
    options = [
        GenerationOptions(max_tokens=30),
        GenerationOptions(max_tokens=25, temperature=0.7, seed=3),
        GenerationOptions(max_tokens=20, temperature=0.5, top_k=3, repetition_penalty=1.2, seed=4),
    ]
    jobs = [(plain_inputs(large, 12 + 5 * n, seed=n), o) for n, o in enumerate(options)]
    wanted, _ = texts(large, jobs)
    got, drafts = texts(large, jobs, guessing(large, small))
    assert got == wanted
    assert drafts[0].accepted >= 10
    assert drafts[0].accepted < drafts[0].proposed  # and some are wrong: rows were dropped


def test_a_drafter_with_the_same_weights_is_always_right_so_its_rows_are_those_of_the_committed_text(
    large: Pipeline,
) -> None:
    drafter = ModelDrafter.of(lively(), large.tokenizer, large.model.vision)
    decoder = SpeculativeDecoder(drafter, 4, adapt=False)
    jobs = [(plain_inputs(large, 15, seed=9), GenerationOptions(max_tokens=31))]
    wanted, _ = texts(large, jobs)
    got, (draft,) = texts(large, jobs, decoder)
    assert got == wanted
    # a path that the drafter itself thinks unlikely is cut short; what it says is right
    assert draft.accepted == draft.proposed > 10


def test_wrong_guesses_leave_no_rows_behind(large: Pipeline, small: Path) -> None:
    """After right and wrong guesses its logits are those of a session that read the text at once."""
    decoder = guessing(large, small)
    pipe = decoder.drafter.pipeline
    jobs = [(plain_inputs(large, 12), GenerationOptions(max_tokens=24, temperature=0.2, seed=5))]
    (tokens,), (draft,) = texts(large, jobs, decoder)
    assert 0 < draft.accepted < draft.proposed
    memory: Ahead = draft.memory
    text = [*jobs[0][0].ids.tolist(), *tokens]
    memory.begin()
    read = memory.session.length + len(memory.todo)
    (rows,) = pipe.compiled.step([_work(memory.session, [*memory.todo, text[read]])])
    fresh = pipe.session()
    (wanted,) = pipe.compiled.step([_work(fresh, text[: read + 1])])
    assert float((rows.logits[-1] - wanted.logits[-1]).abs().max()) < 1e-3


def _work(session: Any, tokens: list[int]) -> Any:
    from andes_sdk.types import Work

    return Work(session=session, tokens=tokens, logits=1)


def test_pictures_reach_a_smaller_model_that_takes_the_same_patches(large: Pipeline) -> None:
    inputs = large.prepare(conversation(0))
    wanted, _ = texts(large, [(inputs, GenerationOptions(max_tokens=20))])
    same = SpeculativeDecoder(ModelDrafter.of(lively(), large.tokenizer, large.model.vision), 3, adapt=False)
    got, (draft,) = texts(large, [(inputs, GenerationOptions(max_tokens=20))], same)
    assert got == wanted
    assert draft.accepted == draft.proposed > 5  # without the picture it would be wrong now and then
    blind = SpeculativeDecoder(evolve(same.drafter, sees=False), 3, adapt=False)
    got, (other,) = texts(large, [(inputs, GenerationOptions(max_tokens=20))], blind)
    assert got == wanted
    assert other.accepted < other.proposed


def test_several_answers_to_one_prompt_fork_the_smaller_session(large: Pipeline, small: Path) -> None:
    inputs = plain_inputs(large, 14)
    options = [GenerationOptions(max_tokens=16, temperature=1.0, seed=s) for s in (1, 2, 3)]
    wanted, _ = texts(large, [(inputs, o) for o in options])
    engine = evolve(large.engine(), ends=(), decoder=guessing(large, small))
    some = engine.join_many(inputs, options, [None] * 3)
    engine.run()
    assert [list(one.tokens) for one in some] == wanted
    assert [one.error for one in some] == [None] * 3


def test_a_smaller_model_without_positions_left_falls_silent_and_the_answer_goes_on(
    large: Pipeline, small: Path
) -> None:
    decoder = guessing(large, small)
    inner = decoder.drafter.open

    class Short(ModelDrafter):
        def open(self) -> Any:
            made = inner()
            made.session._limit = 20
            return made

    short = SpeculativeDecoder(Short(decoder.drafter.pipeline, decoder.drafter.vocabulary, True), 4, adapt=False)
    jobs = [(plain_inputs(large, 12), GenerationOptions(max_tokens=30))]
    wanted, _ = texts(large, jobs)
    got, (draft,) = texts(large, jobs, short)
    assert got == wanted
    assert "20 positions" in draft.memory.silent


def test_another_vocabulary_is_refused(large: Pipeline) -> None:
    class Other:
        vocab_size, eos, pad = large.tokenizer.vocab_size, large.tokenizer.eos, large.tokenizer.pad

        def decode(self, ids: Sequence[int]) -> str:
            return large.tokenizer.decode([(ids[0] + 1) % self.vocab_size])

    with pytest.raises(ConfigError, match=r"another vocabulary\n  why: token \d+ is") as caught:
        refuse_other_vocabulary(Other(), large.tokenizer, "small")  # type: ignore[arg-type]
    assert "same tokenizer" in caught.value.fix
    Other.vocab_size = 7
    with pytest.raises(ConfigError, match="vocab_size is 7, the model's"):
        refuse_other_vocabulary(Other(), large.tokenizer, "small")  # type: ignore[arg-type]


def test_the_option_opens_a_checkpoint_and_adapts(large: Pipeline, small: Path) -> None:
    pipe = lively({"speculative": {"drafter": "model", "model": str(small), "row_cost": 0.01}})
    options = GenerationOptions(max_tokens=24)
    assert pipe.generate(conversation(1), options).tokens == large.generate(conversation(1), options).tokens
    facts = {row.part: row.value for row in pipe.explain().rows}
    assert facts["drafter"] == f"model and suffix, with {small}"
    assert facts["speculation"].startswith(("on", "off"))


def test_the_drafter_model_without_a_model_is_refused_before_anything_is_read() -> None:
    with pytest.raises(AssemblyError) as caught:
        lively({"speculative": {"drafter": "model"}})
    assert "needs a smaller model" in str(caught.value.problems[0])


def test_on_numba_too(small: Path) -> None:
    plain = lively(backend="numba")
    pipe = lively(
        {"speculative": {"drafter": "model", "model": str(small), "adapt": False, "depth": 3}}, backend="numba"
    )
    jobs = [
        (plain_inputs(plain, 12 + n, seed=n), GenerationOptions(max_tokens=20, temperature=t, seed=n))
        for n, t in enumerate((0.0, 0.8))
    ]
    assert texts(pipe, jobs)[0] == texts(plain, jobs)[0]
