"""Texts and files that nobody wishes for: the right answer or a clear error."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from andes_speculative import corpus as corpora
from andes_speculative.corpus import read_corpus
from andes_speculative.suffix import SuffixDrafter
from andes_speculative.testing import MODEL
from attrs import evolve

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, ConfigError
from andes_sdk.runtime.options import GenerationOptions
from andes_sdk.testing.material import plain_inputs
from andes_sdk.types import Inputs


def pipeline(**options: Any) -> Pipeline:
    return Pipeline.from_plugins([*MODEL, {"speculative": options}], seed=1)


@pytest.fixture(scope="module")
def plain() -> Pipeline:
    return Pipeline.from_plugins(MODEL, seed=1)


def test_a_missing_or_empty_corpus_is_refused_before_a_model_is_built(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path, why in ((tmp_path / "none", "is no file"), (tmp_path, "is no file"), (tmp_path / "empty", "is empty")):
        with pytest.raises(AssemblyError) as caught:
            pipeline(corpus=str(path))
        assert why in str(caught.value.problems[0])
        assert "UTF-8" in str(caught.value.problems[0])


@pytest.mark.parametrize("content", [b"\xff\xfe\x00text", b"zero\0bytes", bytes(range(256))])
def test_a_binary_corpus_is_refused(tmp_path: Path, plain: Pipeline, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    pipe = pipeline(corpus=str(tmp_path / "x.bin"))
    with pytest.raises(ConfigError, match="corpus") as caught:
        _ = pipe.decoder
    assert "x.bin" in str(caught.value)
    assert caught.value.fix


def test_a_corpus_that_is_too_large_is_refused(
    tmp_path: Path, plain: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "LARGEST", 10)
    (tmp_path / "large").write_text("more than ten")
    with pytest.raises(ConfigError, match="has 13 bytes, more than 10"):
        read_corpus(str(tmp_path / "large"), plain.tokenizer)


def test_a_corpus_says_what_comes_next_and_the_text_of_the_conversation_goes_before_it(
    tmp_path: Path, plain: Pipeline
) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 2
    (tmp_path / "corpus.txt").write_text(text)
    ids = plain.tokenizer.encode(text)
    drafter = SuffixDrafter(1, 64, read_corpus(str(tmp_path / "corpus.txt"), plain.tokenizer))
    memory = drafter.open()
    memory.read(ids[:5], None)  # type: ignore[arg-type]
    (guesses,) = drafter.guess([memory], [ids[5]], 8)
    assert [g.token for g in guesses] == ids[6 : 6 + len(guesses)]
    assert len(guesses) >= 4
    # the same words went on otherwise in the conversation itself, as long ago as in the corpus
    own = drafter.open()
    own.read([*ids[:6], 7, 8, 9, 3, *ids[:5]], None)  # type: ignore[arg-type]
    (guesses,) = drafter.guess([own], [ids[5]], 3)
    assert guesses[0].token == 7


def test_with_a_corpus_the_text_stays(tmp_path: Path, plain: Pipeline) -> None:
    (tmp_path / "corpus.txt").write_text("abc abd abe abf " * 40)
    pipe = pipeline(corpus=str(tmp_path / "corpus.txt"), adapt=False, rows=8)
    messages = [{"role": "user", "content": "abc abd"}]
    for options in (GenerationOptions(max_tokens=24), GenerationOptions(max_tokens=24, temperature=1.0, seed=3)):
        assert pipe.generate(messages, options).text == plain.generate(messages, options).text


def test_thousands_of_one_token_cost_the_same_each_and_are_guessed_on(plain: Pipeline) -> None:
    drafter = SuffixDrafter()
    memory = drafter.open()
    memory.read([7] * 1000, None)  # type: ignore[arg-type]
    times = []
    for _ in range(3):
        start = time.process_time()
        memory.read([7] * 5000, None)  # type: ignore[arg-type]
        times.append(time.process_time() - start)
    assert times[-1] < 4 * times[0]  # it would be three times as long after three times the text, were it not linear
    (guesses,) = drafter.guess([memory], [7], 64)
    first = [g for g in guesses if g.token == 7]
    assert len(first) == 64
    assert first[-1].chance > 0.5


def test_a_prompt_of_one_token_over_and_over_is_answered_as_without_guesses(plain: Pipeline) -> None:
    inputs = Inputs(ids=torch.full((1200,), 33))
    options = GenerationOptions(max_tokens=60)
    answers = []
    for pipe in (plain, pipeline(row_cost=0.01)):
        engine = evolve(pipe.engine(), ends=())
        one = engine.join(inputs, options)
        engine.run()
        assert one.error is None
        answers.append((list(one.tokens), one.finish))
        one.session.close()
    assert answers[0] == answers[1]


def test_guesses_at_the_last_positions_are_cut_to_what_fits() -> None:
    tiny = [*MODEL[:2], {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": 64}}}]
    pipes = (
        Pipeline.from_plugins(tiny, seed=1),
        Pipeline.from_plugins([*tiny, {"speculative": {"adapt": False}}], seed=1),
    )
    for length in (1, 40, 61, 62, 63, 64):
        got = []
        for pipe in pipes:
            engine = evolve(pipe.engine(), ends=())
            one = engine.join(Inputs(ids=torch.arange(length) % 5 + 30), GenerationOptions(max_tokens=100))
            engine.run()
            got.append((list(one.tokens), one.finish, str(one.error)))
            one.session.close()
        assert got[0] == got[1]
        assert got[0][1] == "length"


def test_a_broken_constraint_inside_a_tree_ends_its_conversation_alone(plain: Pipeline) -> None:
    """An error inside a verified tree is told, and the others go on."""

    class Breaks:
        def allowed(self, answer: Any) -> torch.Tensor | None:
            if len(answer) >= 12:
                raise ValueError("broken rule")
            return None

    pipe = pipeline(adapt=False, rows=12)
    engine = evolve(pipe.engine(), ends=())
    bad = engine.join(plain_inputs(pipe, 20), GenerationOptions(max_tokens=30, constraint=Breaks()))
    good = engine.join(plain_inputs(pipe, 20), GenerationOptions(max_tokens=30))
    engine.run()
    assert bad.finish == "error"
    assert "broken rule" in str(bad.error)
    assert len(bad.tokens) == 12
    assert (good.finish, len(good.tokens)) == ("length", 30)
    good.session.close()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"depth": 0}, "depth"), ({"depth": 65}, "depth"), ({"width": 9}, "width"), ({"rows": 0}, "rows"),
        ({"drafter": "medusa"}, "drafter"), ({"row_cost": -0.5}, "row_cost"), ({"row_cost": "cheap"}, "row_cost"),
        ({"drafter": "eagle3"}, "needs a head"), ({"drafter": "block"}, "needs a head"), ({"matched": -1}, "matched"),
        ({"drafter": "model", "model": "x", "corpus": __file__, "matched": 0}, "`corpus` has no effect"),
        ({"deep": 3}, "deep"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], what: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        pipeline(**options)
    assert what in str(caught.value.problems[0])
