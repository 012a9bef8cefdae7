"""Answers: stream equals generate, batch equals single, sampling is keyed by seed and position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from andes_sdk import Pipeline
from andes_sdk.errors import AssemblyError, BackendUnavailable, InputError
from andes_sdk.runtime.generation import AnswerText, GenerationOptions
from andes_sdk.runtime.sampling import TokenSampler, gumbel, gumbel_at, survivors


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_plugins([{"aimv2": {"preset": "tiny"}}, "mlp", {"qwen3": {"preset": "tiny"}}], seed=1)


def picture_question(text: str = "what is it?", size: tuple[int, int] = (60, 90)) -> list:
    return [
        {
            "role": "user",
            "content": [{"type": "image", "image": Image.new("RGB", size, "teal")}, {"type": "text", "text": text}],
        }
    ]


SAMPLED = GenerationOptions(max_tokens=20, temperature=1.0, top_k=80, top_p=0.95, seed=3)


@pytest.mark.parametrize(
    "options", [GenerationOptions(max_tokens=20), SAMPLED, GenerationOptions(max_tokens=9, think=True)]
)
def test_streamed_pieces_joined_are_the_answer(pipeline: Pipeline, options: GenerationOptions) -> None:
    answer = pipeline.generate(picture_question(), options)
    assert "".join(pipeline.stream(picture_question(), options)) == answer.text
    assert len(answer.tokens) <= options.max_tokens
    assert answer.text.startswith("<think>") == bool(options.think)


@pytest.mark.parametrize("options", [GenerationOptions(max_tokens=12), SAMPLED])
def test_a_batch_gives_what_each_would_give_alone(pipeline: Pipeline, options: GenerationOptions) -> None:
    conversations = [picture_question(), "hello", picture_question("where?", (120, 60)), "hello"]
    together = pipeline.generate_batch(conversations, options)
    alone = [pipeline.generate(c, options) for c in conversations]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    assert [a.finish for a in together] == [a.finish for a in alone]


def test_seeds_decide_and_repeat(pipeline: Pipeline) -> None:
    one = GenerationOptions(max_tokens=20, temperature=1.5, seed=1)
    two = GenerationOptions(max_tokens=20, temperature=1.5, seed=2)
    assert pipeline.generate("hi", one).tokens == pipeline.generate("hi", one).tokens
    assert pipeline.generate("hi", one).tokens != pipeline.generate("hi", two).tokens


def test_an_answer_ends_at_a_stop_string_without_it(pipeline: Pipeline) -> None:
    free = pipeline.generate(picture_question(), SAMPLED).text
    stop = free[3:5]
    options = GenerationOptions(max_tokens=20, temperature=1.0, top_k=80, top_p=0.95, seed=3, stop=(stop,))
    answer = pipeline.generate(picture_question(), options)
    assert answer.finish == "stop"
    assert answer.text == free[: free.index(stop)]
    assert "".join(pipeline.stream(picture_question(), options)) == answer.text


def test_time_is_split_into_parts(pipeline: Pipeline) -> None:
    answer = pipeline.generate(picture_question(), GenerationOptions(max_tokens=3))
    parts = answer.seconds
    assert {"preprocess", "vision", "projector", "prefill", "decode", "first_token"} <= set(parts)
    assert all(parts[p] > 0 for p in ("preprocess", "vision", "projector", "prefill", "first_token"))
    assert parts["first_token"] >= parts["vision"] + parts["prefill"]
    # 60x90 becomes 84x112, 6x8 patches, 12 rows, and <img> </img> around them
    assert answer.prompt_tokens == len(pipeline.prepare("what is it?").ids) + 12 + 2


def test_chat_takes_text_and_pictures(pipeline: Pipeline) -> None:
    text = pipeline.chat("what is it?", images=[Image.new("RGB", (60, 90), "teal")], max_tokens=5)
    assert text == pipeline.generate(picture_question(), GenerationOptions(max_tokens=5)).text
    with pytest.raises(AssemblyError) as caught:
        pipeline.chat("x", max_token=5)
    assert "did you mean 'max_tokens'" in str(caught.value)


def test_more_text_than_positions_is_an_error(tiny) -> None:
    tiny[2] = {"qwen3": {"preset": "tiny", "config": {"max_position_embeddings": 32}}}
    with pytest.raises(InputError, match="the model takes 32"):
        Pipeline.from_plugins(tiny).generate("word " * 100)


def test_an_absent_device_is_an_error_before_anything_is_built(tiny) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA; the error is for machines without")
    with pytest.raises(AssemblyError) as caught:
        Pipeline.from_plugins(tiny, device="cuda")
    assert isinstance(caught.value.exceptions[0], BackendUnavailable)


# ---------------------------------------------------------------- sampling


def pick(logits, position=0, history=(), **options) -> int:
    return TokenSampler(GenerationOptions(**options), list(history)).next(torch.tensor(logits), position)


def test_noise_is_a_function_of_seed_and_position() -> None:
    assert np.array_equal(gumbel(1, 5, 10), gumbel(1, 5, 20)[:10])
    assert not np.array_equal(gumbel(1, 5, 10), gumbel(1, 6, 10))
    assert not np.array_equal(gumbel(1, 5, 10), gumbel(2, 5, 10))


def test_sampled_tokens_follow_the_softmax() -> None:
    logits = [0.0, 1.0, 2.0]
    counts = np.bincount([pick(logits, position=i, temperature=1.0) for i in range(3000)], minlength=3)
    expected = np.exp(logits) / np.exp(logits).sum() * 3000
    assert stats.chisquare(counts, expected).pvalue > 1e-4  # a fixed seed: the outcome does not vary


def test_filters_agree_with_transformers() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = torch.randn(1, 50, generator=generator, dtype=torch.float64)
        for options, warper in (
            (GenerationOptions(temperature=1.0, top_k=7), TopKLogitsWarper(7)),
            (GenerationOptions(temperature=1.0, top_p=0.7), TopPLogitsWarper(0.7)),
            (GenerationOptions(temperature=1.0, min_p=0.2), MinPLogitsWarper(0.2)),
        ):
            tokens, ours = survivors(scores[0].numpy(), options)
            theirs = warper(None, scores.clone())[0].numpy()
            assert tokens.tolist() == np.flatnonzero(np.isfinite(theirs)).tolist()
            assert np.array_equal(ours, theirs[tokens])


def test_noise_of_a_few_tokens_is_that_of_the_whole_vocabulary() -> None:
    for tokens in ([0], [3, 4, 5, 7, 8, 900], list(range(1000)), []):
        assert np.array_equal(gumbel_at(2, 9, tokens), gumbel(2, 9, 1000)[tokens])


@pytest.mark.parametrize("top_p", [0.05, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_top_p_of_a_vocabulary_is_what_sorting_all_of_it_gives(top_p: float, spread: float) -> None:
    scores = np.random.default_rng(0).normal(size=5000) * spread
    order = np.argsort(-scores, kind="stable")
    chances = np.exp(scores[order] - scores[order[0]])
    count = 1 + int((np.cumsum(chances)[:-1] < top_p * chances.sum()).sum())
    tokens, _ = survivors(scores, GenerationOptions(temperature=1.0, top_p=top_p))
    assert tokens.tolist() == sorted(order[:count].tolist())


@pytest.mark.parametrize("options", [{"top_k": 20}, {"top_k": 20, "top_p": 0.9}, {"top_p": 0.95}, {"min_p": 0.1}, {}])
def test_a_sampled_token_does_not_depend_on_which_tokens_get_noise(options: dict) -> None:
    for position in range(20):
        logits = np.random.default_rng(position).normal(size=3000).astype(np.float32) * 3
        tokens, scores = survivors(logits, GenerationOptions(temperature=0.6, **options))
        everywhere = np.full(3000, -np.inf)
        everywhere[tokens] = scores
        wanted = (everywhere + gumbel(0, position, 3000)).argmax()
        assert pick(logits, position, temperature=0.6, **options) == wanted


def test_repetition_penalty_agrees_with_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    scores = torch.randn(1, 30, generator=torch.Generator().manual_seed(0))
    history = [1, 2, 2, 9]
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([history]), scores.clone())[0]
    ours = TokenSampler(GenerationOptions(repetition_penalty=1.7), history)._penalised(scores[0].numpy())
    assert np.allclose(ours, theirs.numpy(), atol=1e-6)


def test_presence_penalty_looks_at_the_answer_only() -> None:
    sampler = TokenSampler(GenerationOptions(presence_penalty=1.0), [0, 1])
    for position in (2, 3):
        assert sampler.next(torch.tensor([0.0, 0.0, 9.0, 0.0]), position) == 2
    assert sampler._penalised(np.zeros(4)).tolist() == [0.0, 0.0, -1.0, 0.0]


def test_greedy_takes_the_best_token_after_penalties() -> None:
    assert pick([1.0, 3.0, 2.0]) == 1
    assert pick([1.0, 3.0, 2.9], history=[1], repetition_penalty=2.0) == 2


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"min_p": 2.0}, {"max_tokens": 0}, {"repetition_penalty": 0.0}]
)
def test_sampling_options_out_of_range_are_refused(options) -> None:
    from andes_sdk.config import structure

    with pytest.raises(AssemblyError):
        structure(GenerationOptions, options, "chat")


def test_text_never_shows_half_a_character_nor_part_of_a_stop_string(pipeline: Pipeline) -> None:
    tokenizer = pipeline.tokenizer
    ids = tokenizer.encode("naïve 日本語 🎉 END more")
    text = AnswerText(tokenizer, ("END",), "")
    pieces = []
    for token in ids:
        text.add([token])
        pieces.append(text.piece())
    assert "".join(pieces) == "naïve 日本語 🎉 "
    assert text.ended
    assert not any("\ufffd" in p for p in pieces)


def test_floats_of_a_constraint_are_added_to_the_logits() -> None:
    class Adds:
        def allowed(self, answer: list[int]) -> torch.Tensor:
            return torch.tensor([-float("inf"), 0.0, 2.5])

    logits = torch.tensor([9.0, 1.0, -1.0])
    assert TokenSampler(GenerationOptions(constraint=Adds()), []).next(logits, 0) == 2
    assert TokenSampler(GenerationOptions(constraint=Adds()), []).next(torch.tensor([9.0, 3.0, 0.0]), 0) == 1
